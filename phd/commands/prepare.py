"""`phd data prepare`: build Megatron's index caches offline, with the flags of the training.

Rank 0 of a job builds them before the first step, and all other ranks wait. Built beforehand, on one machine
and without a GPU, they are only read.
"""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `phd data prepare`."""
    parser.add_argument(
        "--world-size",
        type=int,
        default=1,
        help="ranks of the training (default 1); matters where --global-batch-size follows from it",
    )
    parser.add_argument(
        "training",
        nargs="+",
        metavar="-- FLAGS",
        help="after two dashes all flags of the training, --data-cache-path among them",
    )


def run(args: argparse.Namespace) -> int:
    """Build the caches and say what is there.

    Raises:
        ValueError: no --data-cache-path, or flags that pretrain_phd.py refuses.
    """
    if not any(flag.partition("=")[0] == "--data-cache-path" for flag in args.training):
        raise ValueError(
            "prepare: give --data-cache-path, here and to the training, so that it finds the caches"
        )
    if args.world_size < 1:
        raise ValueError(f"--world-size must be at least 1, got {args.world_size}")
    import phd.megatron  # noqa: F401 (first: it prepares torch for Megatron on a machine without a GPU)

    # isort: split
    from megatron.training import get_tokenizer
    from megatron.training.training import get_train_valid_test_num_samples

    from phd.training.arguments import parse_for_tool
    from phd.training.dataset import build_datasets

    sys.argv = ["pretrain_phd.py", *args.training]
    training = parse_for_tool(args.world_size)
    cache = Path(training.data_cache_path)
    before = set(cache.glob("*")) if cache.is_dir() else set()
    samples = get_train_valid_test_num_samples()
    build_datasets(training, get_tokenizer(), samples, lambda: True)
    made = set(cache.glob("*")) - before
    size = sum(file.stat().st_size for file in made)
    if made:
        print(f"{cache}: {len(made)} files, {size / 1e6:,.1f} MB, for {samples[0]:,} training samples")
    else:
        print(f"{cache}: everything for {samples[0]:,} training samples was there already")
    return 0

"""The subcommands of `phd data` that weigh data sets."""

import argparse
from pathlib import Path

from data_tools.numbers import train_share


def add_blend(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd data blend`."""
    parser.add_argument(
        "prefix", nargs="+", help="of the data sets; with --epochs or --weights PREFIX=NUMBER"
    )
    parser.add_argument("--output", type=Path, required=True, help="the file for --data-args-path")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--temperature",
        type=float,
        help="weight = tokens ** (1 / T): 1 by size (the default), above 1 nearer to even",
    )
    how.add_argument("--epochs", action="store_true", help="the NUMBERs say how often each is gone through")
    how.add_argument("--weights", action="store_true", help="the NUMBERs are shares of the tokens trained on")
    how.add_argument(
        "--weights-file",
        type=Path,
        metavar="FILE",
        help="lines of a share of the tokens trained on and a data set's name, its PREFIX without the folder",
    )
    _add_length_of_training(parser)
    parser.set_defaults(run=_run_blend)


def _add_length_of_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train-tokens", type=int, help="how long the training is; needed to see what overruns"
    )
    parser.add_argument(
        "--max-epochs",
        type=float,
        default=4.0,
        help="refuse a blend that goes through one more often (default 4)",
    )
    parser.add_argument(
        "--split",
        default="95,5,0",
        help="the training's --split: the first number is the share of the documents that is trained on, and "
        "so counted (default 95,5,0, as examples/pretrain.sh has it; Megatron's own is 969,30,1)",
    )


def _run_blend(args: argparse.Namespace) -> int:
    from data_tools.blend import blend

    blend(
        args.prefix,
        args.output,
        temperature=args.temperature,
        epochs=args.epochs,
        weights=args.weights,
        weights_file=args.weights_file,
        train_tokens=args.train_tokens,
        max_epochs=args.max_epochs,
        train_share=train_share(args.split),
    )
    return 0


def add_upsample(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd data upsample`."""
    parser.add_argument("prefix", nargs="+", type=Path, help="a data set for each domain")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder for NAME-long and NAME-short of each domain, and blend.txt for --data-args-path",
    )
    parser.add_argument(
        "--longer-than",
        type=int,
        default=4096,
        metavar="TOKENS",
        help="what is a long document (default 4096)",
    )
    parser.add_argument(
        "--long-share",
        type=float,
        default=0.7,
        help="of the tokens trained on, how much comes from them, in every domain (default 0.7)",
    )
    _add_length_of_training(parser)
    parser.set_defaults(run=_run_upsample)


def _run_upsample(args: argparse.Namespace) -> int:
    from data_tools.upsample import upsample

    upsample(
        args.prefix,
        args.output,
        longer_than=args.longer_than,
        long_share=args.long_share,
        train_tokens=args.train_tokens,
        max_epochs=args.max_epochs,
        train_share=train_share(args.split),
    )
    return 0

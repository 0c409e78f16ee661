"""`phd merge`: models of one shape as one, with a mean of their weights."""

import argparse
import tempfile
from pathlib import Path

from phd.commands.export import add_tokenizer, export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd merge`."""
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="folders of `phd export`, --save folders of runs, or iter_* folders in them; all but the "
        "weights is the first's",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        required=True,
        metavar="SHARE",
        help="of each model; they add up to 1: LongRecipe's are 0.5 0.5",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="OUT_DIR",
        help="exported folder to write; must not be there yet (`phd import` makes a checkpoint of it)",
    )
    add_tokenizer(parser)


def run(args: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    from phd.hf.merge import check_weights, merge

    check_weights(args.models, args.weights)
    names = [*map(str, args.models)]
    # beside the output: it has room for models of this size
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{args.output.name}-", dir=args.output.parent) as temporary:
        folders = []
        for number, model in enumerate(args.models):
            folder = model
            if model.is_dir() and not (model / "config.json").exists():
                folder = Path(temporary) / str(number)
                *_, told = export(model, folder, args.tokenizer, args.no_tokenizer)
                print(f"{model}: {told}", flush=True)
            folders.append(folder)
        total, taken = merge(folders, args.weights, args.output, names)
    for line in taken:
        print(f"taken: {line}")
    shares = ", ".join(f"{weight:g} x {name}" for name, weight in zip(names, args.weights, strict=True))
    print(f"{args.output}: {shares}, {total / 1e6:,.1f} MB of weights")
    return 0

"""`phd merge`: exported models of one shape as one, with a mean of their weights."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd merge`."""
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="of `phd export`; all but the weights is the first's",
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        required=True,
        metavar="SHARE",
        help="of each folder; they add up to 1: LongRecipe's are 0.5 0.5",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="OUT_DIR", help="must not be there yet")


def run(args: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    from phd.hf.merge import merge

    total, told = merge(args.folders, args.weights, args.output)
    shares = ", ".join(
        f"{weight:g} x {folder}" for folder, weight in zip(args.folders, args.weights, strict=True)
    )
    for line in told:
        print(f"taken: {line}")
    print(f"{args.output}: {shares}, {total / 1e6:,.1f} MB of weights")
    return 0

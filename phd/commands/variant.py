"""`phd variant`: check the name of a variant, for scripts that make folders and jobs of it."""

import argparse

from phd.rules.pattern import LayerPattern
from phd.rules.variant import Variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd variant`."""
    parser.add_argument("name", help="such as vanilla, PHD-CSWA-2-16-32 or PHD-CSWA-2-16-32+longgen-sink")
    parser.add_argument("--num-layers", type=int, metavar="N", help="print the pattern of so many layers too")


def run(args: argparse.Namespace) -> int:
    """Print the name as all of this project writes it.

    Raises:
        ValueError: it names no variant, or one of another depth.
    """
    variant = Variant.parse(args.name)
    print(variant)
    if args.num_layers is not None:
        print(LayerPattern.of(tuple(rule.keys for rule in variant.layers(args.num_layers))))
    return 0

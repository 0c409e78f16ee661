"""--variant, the short way to say what a model's attention is."""

import sys
from argparse import ArgumentParser, Namespace

from phd.old_flags import add_old_pattern_flags
from phd.rules.variant import NAMED, Variant
from phd.run.arguments import flag

_OLD = ("block", "sink_blocks", "local_blocks", "stride", "stride_local_blocks")


def add_variant_flags(parser: ArgumentParser) -> None:
    """Add --variant, and the flags that stop with their new spelling."""
    group = parser.add_argument_group("variant")
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="In place of --phd-copies, --phd-window, --phd-chunk, --phd-naive, --phd-consecutive-positions, "
        "--phd-copy-embedding and --attention-pattern: a name such as vanilla, PHD-CSWA-2-16-32, "
        "PHD-SWA-5-16-inf, PHD-3, PHD-CSWA-2-16-32+vector, naive-2, naive-2-consecutive+table, longgen-sink "
        "or PHD-CSWA-2-16-32+table+longgen-sink.",
    )
    old = (f"attention_pattern_{name}" for name in _OLD)
    add_old_pattern_flags(parser, {flag(name): name for name in old})


def take_variant(args: Namespace) -> None:
    """Put what --variant says into the arguments that its name stands for.

    Raises:
        ValueError: it names no variant, or a flag that it stands for is given too.
    """
    name = args.variant
    del args.variant  # the other arguments say it: nobody need compare both
    if name is None:
        return
    given = {word.partition("=")[0] for word in sys.argv[1:]}
    if beside := [flag(argument) for argument in NAMED if flag(argument) in given]:
        raise ValueError(f"--variant {name} says what {', '.join(beside)} says: leave one out")
    try:
        variant = Variant.parse(name)
    except ValueError as error:
        raise ValueError(f"--variant: {error}") from error
    copies = variant.copies
    args.phd_copies, args.phd_window, args.phd_chunk = copies.count, copies.window, copies.chunk or 0
    args.phd_naive, args.phd_consecutive_positions = copies.cached, copies.consecutive
    args.phd_copy_embedding, args.attention_pattern = variant.embedding, str(variant.pattern)

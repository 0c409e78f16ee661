"""The flags of a layer pattern at inference, and those of before, which stop with their new spelling."""

import argparse

from phd.old_flags import add_old_pattern_flags
from phd.pattern_flags import add_pattern_flags

_OLD = {
    **{"--pattern-block": "attention_pattern_block", "--pattern-sink": "attention_pattern_sink_blocks"},
    **{"--pattern-local": "attention_pattern_local_blocks", "--pattern-stride": "attention_pattern_stride"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the pattern."""
    add_pattern_flags(parser)
    add_old_pattern_flags(parser, _OLD)

"""Flags of earlier versions that stop with their new spelling."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from phd.rules.pattern import LayerPattern


def add_old_pattern_flags(parser: argparse.ArgumentParser, flags: Mapping[str, str]) -> None:
    """Refuse flags for the numbers of sparse layers: --attention-pattern says them itself.

    Args:
        flags: the argument of ``LayerPattern.from_arguments`` by its flag.
    """

    class Old(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
            words = [part for word in sys.argv[1:] for part in word.split("=", 1)]
            given = dict(zip(words, words[1:], strict=False))
            arguments = {"attention_pattern": given.get("--attention-pattern", "sink")}
            arguments |= {name: given[flag] for flag, name in flags.items() if flag in given}
            try:
                spelling = f"write --attention-pattern {LayerPattern.from_arguments(arguments)}"
            except ValueError as error:
                spelling = str(error)
            parser.error(f"{self.option_strings[0]} is part of --attention-pattern now: {spelling}")

    for flag in flags:
        parser.add_argument(flag, action=Old, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

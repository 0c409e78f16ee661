"""The subcommands of `phd data` that make a data set from another."""

import argparse
from pathlib import Path

from data_tools.cli_tokenizer import add_tokenizer


def add_condense(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd data condense`."""
    _add_places(parser)
    add_tokenizer(parser, required=True, purpose="what the data set was tokenized with")
    parser.add_argument(
        "--sentence-ends",
        default="marks",
        metavar="marks|newline|ID,ID,...",
        help="tokens that end a sentence: . ? ! and newlines (the default), newlines alone, or these ids",
    )
    parser.add_argument(
        "--keep-share",
        type=float,
        default=0.5,
        help="of the sentences without a digit, how many stay, by lot (default 0.5); those with one all do",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        help="of a document at most, in whole sentences from the first kept one on (default: all kept)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the lots")
    parser.add_argument(
        "--on-no-sentence-end",
        choices=("stop", "keep"),
        default="stop",
        help="a document in which no sentence ends: stop (the default), or keep it whole",
    )
    parser.set_defaults(run=_run_condense)


def _run_condense(args: argparse.Namespace) -> int:
    from data_tools.condense import condense

    condense(
        args.prefix,
        args.output,
        tokenizer_model=args.tokenizer_model,
        tiktoken_pattern=args.tiktoken_pattern,
        ends=args.sentence_ends,
        keep_share=args.keep_share,
        tokens=args.tokens,
        seed=args.seed,
        keep_without_end=args.on_no_sentence_end == "keep",
    )
    return 0


def add_cut(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd data cut`."""
    _add_places(parser)
    parser.add_argument("--length", type=int, required=True, metavar="TOKENS", help="of a piece")
    parser.set_defaults(run=_run_cut)


def _run_cut(args: argparse.Namespace) -> int:
    from data_tools.cut import cut

    cut(args.prefix, args.output, args.length)
    return 0


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", type=Path, help="of the data set to read, without .bin or .idx")
    parser.add_argument("--output", type=Path, required=True, help="prefix of the data set to write")

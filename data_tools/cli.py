"""The subcommands of `phd data`."""

import argparse
import os
from pathlib import Path


def add_subcommands(parser: argparse.ArgumentParser) -> None:
    """Add train-tokenizer, tokenize, inspect, verify; each sets ``run``, a function of the arguments."""
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)

    train = commands.add_parser("train-tokenizer", help="train a SentencePiece BPE tokenizer on text")
    _add_inputs(train)
    train.add_argument(
        "--output-prefix", type=Path, required=True, help="writes PREFIX.model, .vocab, .model.json"
    )
    train.add_argument(
        "--vocab-size", type=int, required=True, help="pieces, control tokens and bytes included"
    )
    train.add_argument("--seed", type=int, default=0, help="for the sample of sentences")
    train.add_argument(
        "--max-sentences",
        type=int,
        default=1_000_000,
        help="lines to sample from all inputs (bounds the memory)",
    )
    train.set_defaults(run=_run_train)

    tokenize = commands.add_parser("tokenize", help="tokenize documents into PREFIX.bin and PREFIX.idx")
    _add_inputs(tokenize)
    tokenize.add_argument("--tokenizer-model", type=Path, required=True, help="a SentencePiece .model file")
    tokenize.add_argument(
        "--output-prefix", type=Path, required=True, help="what --data-path takes afterwards"
    )
    tokenize.add_argument("--append-eod", action="store_true", help="end every document with the EOD token")
    tokenize.add_argument(
        "--workers",
        type=int,
        # What the scheduler gave this task, not what the node has.
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        help="processes (default: the cores given to this one)",
    )
    tokenize.set_defaults(run=_run_tokenize)

    inspect = commands.add_parser("inspect", help="counts, lengths and samples of a PREFIX.bin/.idx")
    inspect.add_argument("prefix", type=Path, help="path without .bin or .idx")
    inspect.add_argument("--tokenizer-model", type=Path, help="decode the samples with this .model")
    inspect.add_argument("--samples", type=int, default=2, help="documents to show")
    inspect.set_defaults(run=_run_inspect)

    verify = commands.add_parser("verify", help="check sizes and every id of a PREFIX.bin/.idx")
    verify.add_argument("prefix", type=Path, help="path without .bin or .idx")
    verify.add_argument("--tokenizer-model", type=Path, required=True, help="the .model it was made with")
    verify.set_defaults(run=_run_verify)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, help=".jsonl (one object a line) and .txt files"
    )
    parser.add_argument("--text-field", default="text", help="field of a jsonl record that holds the text")
    parser.add_argument(
        "--document-separator",
        metavar="LINE",
        help="a line that ends a document in .txt files, '' for an empty line (default: a file, a document)",
    )


def _run_train(args: argparse.Namespace) -> int:
    from data_tools.tokenizer import train_tokenizer

    train_tokenizer(
        args.input,
        args.output_prefix,
        vocab_size=args.vocab_size,
        seed=args.seed,
        max_sentences=args.max_sentences,
        text_field=args.text_field,
        document_separator=args.document_separator,
    )
    return 0


def _run_tokenize(args: argparse.Namespace) -> int:
    from data_tools.tokenize import tokenize

    tokenize(
        args.input,
        args.output_prefix,
        tokenizer_model=args.tokenizer_model,
        append_eod=args.append_eod,
        workers=args.workers,
        text_field=args.text_field,
        document_separator=args.document_separator,
    )
    return 0


def _run_inspect(args: argparse.Namespace) -> int:
    from data_tools.inspect import inspect

    inspect(args.prefix, tokenizer_model=args.tokenizer_model, samples=args.samples)
    return 0


def _run_verify(args: argparse.Namespace) -> int:
    from data_tools.encode import load_tokenizer
    from data_tools.verify import verify

    verify(args.prefix, vocab_size=len(load_tokenizer(args.tokenizer_model)))
    return 0

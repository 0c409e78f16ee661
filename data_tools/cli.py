"""The subcommands of `phd data`."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.cli_blend import add_blend, add_upsample
from data_tools.cli_rewrite import add_condense, add_cut
from data_tools.cli_tokenizer import add_tokenizer
from data_tools.inputs import KNOWN
from data_tools.slurm import choose_rank


def add_subcommands(parser: argparse.ArgumentParser) -> Any:
    """Add the commands; each sets ``run``, a function of the arguments that returns the exit status.

    Returns:
        argparse's object that takes more commands.
    """
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    for name, summary, add in (
        ("train-tokenizer", "train a SentencePiece tokenizer on text", _add_train),
        ("tokenize", "tokenize documents into PREFIX.bin and PREFIX.idx", _add_tokenize),
        ("merge", "put the shards of many ranks, or whole data sets, into one", _add_merge),
        ("inspect", "counts, lengths and samples of a PREFIX.bin/.idx", _add_inspect),
        ("verify", "check sizes, checksums and every id of a PREFIX.bin/.idx", _add_verify),
        ("blend", "weights of several data sets, as a file for --data-args-path", add_blend),
        (
            "upsample",
            "more tokens from long documents, domains as they were, for a longer context",
            add_upsample,
        ),
        (
            "condense",
            "fewer tokens of every document, in whole sentences, for a longer context on less text",
            add_condense,
        ),
        ("cut", "documents as pieces of one length, without what is left over", add_cut),
        ("pack", "how documents fill sequences of a context length", _add_pack),
    ):
        add(commands.add_parser(name, help=summary, description=summary))
    return commands


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        help=f"{KNOWN}: files, folders, patterns, URLs (fsspec), pipes, and - for standard input",
    )
    parser.add_argument(
        "--input-list",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a file that names more inputs, one a line",
    )
    parser.add_argument(
        "--text-field",
        default="text",
        help="jsonl field or parquet column that holds the text; a.b is b within a",
    )
    parser.add_argument(
        "--document-separator",
        metavar="LINE",
        help="a line that ends a document in .txt files, '' for an empty line (default: a file, a document)",
    )
    parser.add_argument(
        "--on-bad-record",
        choices=("stop", "skip"),
        default="stop",
        help="broken JSON, a missing text, invalid UTF-8, a text of which the tokenizer "
        "leaves nothing: stop, or count, list and leave out",
    )
    parser.add_argument(
        "--on-empty-text",
        choices=("skip", "bad"),
        default="skip",
        help="skip: pass over and count (as Megatron's tool does); bad: a bad record",
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_inputs(parser)
    parser.add_argument(
        "--output-prefix", type=Path, required=True, help="writes PREFIX.model, .vocab, .model.json"
    )
    parser.add_argument(
        "--vocab-size", type=int, required=True, help="pieces, control tokens and bytes included"
    )
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe")
    parser.add_argument(
        "--control-tokens", nargs="*", default=[], metavar="TOKEN", help="beside <unk> <s> </s>"
    )
    parser.add_argument("--seed", type=int, default=0, help="for the samples of documents and lines")
    parser.add_argument("--sample-rate", type=float, default=1.0, help="share of the documents to train on")
    parser.add_argument(
        "--max-sentences", type=int, default=1_000_000, help="lines to sample from these (bounds the memory)"
    )
    parser.set_defaults(run=_run_train)


def _run_train(args: argparse.Namespace) -> int:
    from data_tools.train import train_tokenizer

    with _inputs(args) as inputs:
        train_tokenizer(
            inputs,
            args.output_prefix,
            vocab_size=args.vocab_size,
            model_type=args.model_type,
            control_tokens=args.control_tokens,
            seed=args.seed,
            sample_rate=args.sample_rate,
            max_sentences=args.max_sentences,
            form=_form(args),
            stop_on_bad_record=args.on_bad_record == "stop",
            empty_is_bad=args.on_empty_text == "bad",
        )
    return 0


@contextmanager
def _inputs(args: argparse.Namespace, world_size: int = 1) -> Iterator[Sequence[Any]]:
    """All inputs that the flags name, with files in the place of pipes."""
    from data_tools.inputs import read_list
    from data_tools.pipes import is_pipe, spooled

    names = [*args.input, *(name for file in args.input_list for name in read_list(file))]
    if not names:
        raise ValueError("--input: name what to read, or with --input-list a file that names it")
    if world_size > 1 and (pipe := next(filter(is_pipe, names), None)):
        raise ValueError(f"--input {pipe}: a pipe can be read by one rank alone: give all ranks a file")
    with spooled(names, args.output_prefix, is_text=args.document_separator is not None) as inputs:
        yield inputs


def _form(args: argparse.Namespace) -> Any:
    from data_tools.records import Format

    return Format(args.text_field, getattr(args, "id_field", None), args.document_separator)


def _add_tokenize(parser: argparse.ArgumentParser) -> None:
    _add_inputs(parser)
    parser.add_argument("--id-field", help="keep this field of every document in PREFIX.ids.jsonl")
    parser.add_argument(
        "--max-bad-share", type=float, default=0.01, help="with skip: more bad records than this stop the run"
    )
    add_tokenizer(parser, required=True, purpose="what to tokenize with")
    parser.add_argument(
        "--no-fast",
        dest="fast",
        action="store_false",
        help="use the reference tokenizer alone, not gigatoken where it gives the same ids",
    )
    parser.add_argument("--output-prefix", type=Path, required=True, help="what --data-path takes afterwards")
    parser.add_argument("--append-eod", action="store_true", help="end every document with the EOD token")
    parser.add_argument("--eod-token", help="its string (default: the tokenizer's, </s> or <|endoftext|>)")
    parser.add_argument("--prepend-bos", action="store_true", help="begin every document with the BOS token")
    parser.add_argument("--bos-token", help="its string (default: the tokenizer's, <s>)")
    parser.add_argument(
        "--workers",
        type=int,
        # What the scheduler gave this task, not what the node has.
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        help="processes (default: the cores given to this one)",
    )
    parser.add_argument(
        "--worker-memory",
        type=int,
        default=1000,
        metavar="MB",
        help="that a worker may use, for documents up to a twentieth of it (default 1000)",
    )
    parser.add_argument(
        "--unit-bytes",
        type=int,
        help="size of a work unit (default: a 256th of the inputs, 4 MiB to 1 GiB)",
    )
    parser.add_argument(
        "--rank", type=int, help="which share of the units to do, from 0 (default: all of them)"
    )
    parser.add_argument("--world-size", type=int, help="how many shares there are")
    parser.add_argument(
        "--slurm", action="store_true", help="--rank and --world-size from SLURM's job array and srun's tasks"
    )
    parser.set_defaults(run=_run_tokenize)


def _run_tokenize(args: argparse.Namespace) -> int:
    rank, world_size = choose_rank(args.rank, args.world_size, args.slurm, os.environ)
    with _inputs(args, world_size) as inputs:
        _tokenize(args, inputs, rank, world_size)
    return 0


def _tokenize(args: argparse.Namespace, inputs: Sequence[Any], rank: int, world_size: int) -> None:
    from data_tools.tokenize import tokenize

    tokenize(
        inputs,
        args.output_prefix,
        tokenizer_model=args.tokenizer_model,
        tiktoken_pattern=args.tiktoken_pattern,
        fast=args.fast,
        append_eod=args.append_eod,
        eod_token=args.eod_token,
        prepend_bos=args.prepend_bos,
        bos_token=args.bos_token,
        form=_form(args),
        workers=args.workers,
        rank=rank,
        world_size=world_size,
        unit_size=args.unit_bytes,
        worker_memory=args.worker_memory * 1_000_000,
        stop_on_bad_record=args.on_bad_record == "stop",
        max_bad_share=args.max_bad_share,
        empty_is_bad=args.on_empty_text == "bad",
    )


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        help="one PREFIX.units folder, or prefixes of .bin/.idx in the order wanted",
    )
    parser.add_argument("--output-prefix", type=Path, required=True, help="of the .bin and .idx to write")
    parser.set_defaults(run=_run_merge)


def _run_merge(args: argparse.Namespace) -> int:
    from data_tools.cards import losses
    from data_tools.merge import is_units_folder, merge_data_sets, merge_units

    folders = [path for path in args.inputs if is_units_folder(path)]
    if folders and len(args.inputs) > 1:
        raise ValueError(f"merge {folders[0]}: a folder of units is merged alone; then merge the data sets")
    if folders:
        content = merge_units(folders[0], args.output_prefix)
    else:
        content = merge_data_sets(args.inputs, args.output_prefix)
    print(f"{args.output_prefix}: {content['documents']:,} documents, {content['tokens']:,} tokens")
    for loss in losses(content):
        print(loss)
    return 0


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", type=Path, help="path without .bin or .idx")
    add_tokenizer(parser, required=False, purpose="to decode the samples with")
    parser.add_argument("--samples", type=int, default=2, help="documents to show")
    parser.add_argument("--histogram", type=Path, metavar="PNG", help="draw the lengths of documents")
    parser.set_defaults(run=_run_inspect)


def _run_inspect(args: argparse.Namespace) -> int:
    from data_tools.inspect import inspect

    inspect(
        args.prefix,
        tokenizer_model=args.tokenizer_model,
        tiktoken_pattern=args.tiktoken_pattern,
        samples=args.samples,
        histogram=args.histogram,
    )
    return 0


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", type=Path, nargs="+", help="path without .bin or .idx")
    add_tokenizer(parser, required=False, purpose="for data sets without a .json")
    parser.set_defaults(run=_run_verify)


def _run_verify(args: argparse.Namespace) -> int:
    from data_tools.encoders import load_encoder
    from data_tools.indexed import open_indexed
    from data_tools.verify import verify

    vocab_size = None
    if args.tokenizer_model is not None:
        vocab_size = load_encoder(args.tokenizer_model, fast=False, pattern=args.tiktoken_pattern).vocab_size
    for prefix in args.prefix:
        open_indexed(prefix)  # before the first of them is gone through, which may take hours
    for prefix in args.prefix:
        verify(prefix, vocab_size=vocab_size)
    return 0


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", type=Path, help="path without .bin or .idx")
    parser.add_argument("--length", type=int, nargs="+", required=True, help="context lengths in tokens")
    parser.set_defaults(run=_run_pack)


def _run_pack(args: argparse.Namespace) -> int:
    from data_tools.pack import pack

    pack(args.prefix, args.length)
    return 0

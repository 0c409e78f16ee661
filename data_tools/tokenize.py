"""Tokenize documents into Megatron's .bin/.idx on all cores, in the order of the inputs."""

import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from data_tools.documents import Batch, check_inputs, parse, read_batches
from data_tools.files import identity, rename, sha256, sync, write_json

_worker: tuple[sentencepiece.SentencePieceProcessor, str, bool]


def tokenize(
    paths: Sequence[Path],
    output_prefix: Path,
    *,
    tokenizer_model: Path,
    append_eod: bool = False,
    workers: int = 1,
    text_field: str = "text",
    document_separator: str | None = None,
) -> dict[str, Any]:
    """Write ``output_prefix``.bin, .idx and a .json that says what they hold; the .json is written last.

    The files do not depend on ``workers``. An interrupted run leaves only ``*.tmp`` files behind, which the
    next one replaces. Called again with the same inputs it does nothing.

    Returns:
        the content of the .json.

    Raises:
        ValueError: a bad record (names file and line), or other inputs or options than those of the files
            that lie there already (names the difference).
        FileNotFoundError: an input or the tokenizer is missing.
    """
    check_inputs(paths)
    if not tokenizer_model.is_file():
        raise FileNotFoundError(f"--tokenizer-model {tokenizer_model}: there is no such file")
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    made_from = {
        "inputs": [identity(path) for path in paths],
        "tokenizer_sha256": sha256(tokenizer_model),
        "append_eod": append_eod,
        "text_field": text_field,
        "document_separator": document_separator,
    }
    card = output_prefix.with_name(f"{output_prefix.name}.json")
    if card.is_file():
        return _already_done(card, made_from)

    output_prefix.parent.mkdir(parents=True, exist_ok=True)
    vocab_size = len(sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model)))
    counts = _write(
        paths,
        output_prefix,
        vocab_size,
        (str(tokenizer_model), text_field, append_eod),
        workers,
        document_separator,
    )
    content = {"made_from": made_from, "vocab_size": vocab_size, **counts}
    write_json(card, content)
    print(f"{output_prefix}: {counts['documents']} documents, {counts['tokens']} tokens, {counts['dtype']}")
    return content


def _write(
    paths: Sequence[Path],
    output_prefix: Path,
    vocab_size: int,
    settings: tuple[str, str, bool],
    workers: int,
    separator: str | None,
) -> dict[str, Any]:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder  # takes seconds to import

    dtype = DType.optimal_dtype(vocab_size)
    bin_file, idx_file = (output_prefix.with_name(f"{output_prefix.name}{end}") for end in (".bin", ".idx"))
    bin_tmp, idx_tmp = (file.with_name(f"{file.name}.tmp") for file in (bin_file, idx_file))
    builder = IndexedDatasetBuilder(str(bin_tmp), dtype=dtype)
    documents = tokens = 0
    total = sum(path.stat().st_size for path in paths)
    # A fresh interpreter for each worker: forking one that has loaded torch can hang.
    context = multiprocessing.get_context("spawn")
    columns = (
        TextColumn("tokenize"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
    )
    with context.Pool(workers, _start_worker, settings) as pool, Progress(*columns) as progress:
        task = progress.add_task("", total=total, counts="")
        for lengths, ids, size in pool.imap(_encode, read_batches(paths, separator)):
            start = 0
            for length in lengths:
                builder.add_document(ids[start : start + length], [length])
                start += length
            documents += len(lengths)
            tokens += len(ids)
            counts = f"{documents:,} documents, {tokens:,} tokens"
            progress.update(task, advance=size, counts=counts)
    if documents == 0:
        raise ValueError(f"no document in {', '.join(map(str, paths))}")
    builder.finalize(str(idx_tmp))
    for temporary, target in ((bin_tmp, bin_file), (idx_tmp, idx_file)):
        sync(temporary)
        rename(temporary, target)
    return {"documents": documents, "tokens": tokens, "dtype": np.dtype(dtype).name}


def _start_worker(tokenizer_model: str, text_field: str, append_eod: bool) -> None:
    global _worker
    _worker = sentencepiece.SentencePieceProcessor(model_file=tokenizer_model), text_field, append_eod


def _encode(batch: Batch) -> tuple[list[int], np.ndarray, int]:
    """Token counts of the batch's documents, their ids in one row, and how many input bytes that was."""
    processor, text_field, append_eod = _worker
    encoded = processor.encode(parse(batch, text_field), add_eos=append_eod)
    lengths = [len(ids) for ids in encoded]
    ids = np.fromiter(
        (token for document in encoded for token in document), dtype=np.int32, count=sum(lengths)
    )
    return lengths, ids, sum(map(len, batch.lines))


def _already_done(card: Path, made_from: dict[str, Any]) -> dict[str, Any]:
    content = json.loads(card.read_text(encoding="utf-8"))
    before = content["made_from"]
    changed = [name for name, value in made_from.items() if before.get(name) != value]
    if changed:
        was = ", ".join(f"{name} was {before.get(name)}, is {made_from[name]}" for name in changed)
        raise ValueError(
            f"{card} was made from something else ({was}): "
            "choose another --output-prefix or delete these files"
        )
    print(f"{card}: already done, {content['documents']} documents, {content['tokens']} tokens")
    return content

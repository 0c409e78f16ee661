"""Tokenize documents into Megatron's .bin/.idx on all cores, in the order of the inputs."""

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.documents import check_inputs, read_batches
from data_tools.encode import Encoded, Settings, encode_batches, load_tokenizer
from data_tools.files import append_suffix, identity, lock, rename, sha256, sync, write_json
from data_tools.megatron import indexed_dataset
from data_tools.progress import byte_progress


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

    The files do not depend on ``workers``. An interrupted run leaves ``*.tmp`` files behind, which the
    next one replaces, and never a .json. Called again with the same inputs it does nothing.

    Returns:
        the content of the .json.

    Raises:
        ValueError: a bad record (names file and line), a tokenizer that cannot do what is asked, another run
            that writes the same files, or other inputs or options than those of the files that lie there
            already (names the difference).
        FileNotFoundError: an input or the tokenizer is missing.
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    check_inputs(paths, document_separator)
    processor = load_tokenizer(tokenizer_model)
    if append_eod and processor.eos_id() < 0:
        raise ValueError(f"--append-eod: {tokenizer_model} has no </s>, which is what Megatron takes as EOD")
    made_from = {
        "inputs": [identity(path) for path in paths],
        "tokenizer_sha256": sha256(tokenizer_model),
        "append_eod": append_eod,
        "text_field": text_field,
        "document_separator": document_separator,
    }
    card = append_suffix(output_prefix, ".json")
    if card.is_file():
        content = _already_done(output_prefix, card, made_from)
        print(
            f"{output_prefix}: already done, {content['documents']:,} documents, {content['tokens']:,} tokens"
        )
        return content

    output_prefix.parent.mkdir(parents=True, exist_ok=True)
    settings = Settings(tokenizer_model, text_field, append_eod)
    with (
        lock(append_suffix(output_prefix, ".bin.tmp")),
        closing(encode_batches(read_batches(paths, document_separator), settings, workers)) as encoded,
    ):
        counts = _write(encoded, output_prefix, len(processor), sum(path.stat().st_size for path in paths))
    content = {
        "made_from": made_from,
        "vocab_size": len(processor),
        "eod_id": processor.eos_id() if append_eod else None,
        **counts,
    }
    write_json(card, content)
    print(
        f"{output_prefix}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['dtype']}"
    )
    if marked := counts["documents_with_space_mark"]:
        print(f"{marked:,} documents hold U+2581, SentencePiece's sign for a space: it decodes to one")
    return content


def _write(encoded: Iterable[Encoded], prefix: Path, vocab_size: int, total_bytes: int) -> dict[str, Any]:
    megatron = indexed_dataset()
    dtype = megatron.DType.optimal_dtype(vocab_size)
    temporary = {end: append_suffix(prefix, f"{end}.tmp") for end in (".bin", ".idx")}
    builder = megatron.IndexedDatasetBuilder(str(temporary[".bin"]), dtype=dtype)
    documents = tokens = marked = 0
    with byte_progress() as progress:
        task = progress.add_task("tokenize", total=total_bytes, note="")
        for batch in encoded:
            start = 0
            for length in batch.lengths:
                builder.add_document(batch.ids[start : start + length], [length])
                start += length
            documents += len(batch.lengths)
            tokens += start
            marked += batch.with_space_mark
            progress.update(
                task, advance=batch.input_bytes, note=f"{documents:,} documents, {tokens:,} tokens"
            )
        progress.update(task, completed=total_bytes)  # empty lines and separators are in no batch
    if documents == 0:
        raise ValueError("--input: there is no document in these files")
    builder.finalize(str(temporary[".idx"]))
    # Without an .idx no reader takes the .bin for a data set: an old one goes first, the new one comes last.
    append_suffix(prefix, ".idx").unlink(missing_ok=True)
    for end, file in temporary.items():
        sync(file)
        rename(file, append_suffix(prefix, end))
    return {
        "documents": documents,
        "tokens": tokens,
        "dtype": np.dtype(dtype).name,
        "documents_with_space_mark": marked,
        "file_bytes": {end: append_suffix(prefix, end).stat().st_size for end in temporary},
    }


def _already_done(prefix: Path, card: Path, made_from: dict[str, Any]) -> dict[str, Any]:
    remedy = "choose another --output-prefix, or delete this file to write anew"
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        before, file_bytes = content["made_from"], content["file_bytes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{card} was not written by `tokenize`: {remedy}") from error
    for name, value in made_from.items():
        if before.get(name) != value:
            old, new = _first_difference(before.get(name), value)
            raise ValueError(f"{card} was made from something else ({name} was {old}, is {new}): {remedy}")
    for end, size in file_bytes.items():
        file = append_suffix(prefix, end)
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{file} is missing or not the {size} bytes that {card} tells: {remedy}")
    return content


def _first_difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Of two lists of inputs the first pair that differs: there may be thousands."""
    if isinstance(old, list) and isinstance(new, list):
        return next((a, b) for a, b in zip_longest(old, new) if a != b)
    return old, new

"""A data set made from another, a block of documents at a time: memory for one block, and a run that was
stopped goes on.

While it grows its content lies in OUTPUT.bin.tmp, and the lengths of its documents in OUTPUT.lengths.tmp;
OUTPUT.progress.json, written when both are on the disk, says up to which document of the source.
"""

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_tools.cards import files_of, put_in_place, read_card, refuse_difference, refuse_without_card
from data_tools.files import append_suffix, crc32, lock, write_json
from data_tools.indexed import BLOCK, Indexed, write_index
from data_tools.places import check_prefix, data_set_files, real_prefix, refuse_over_inputs
from data_tools.progress import byte_progress

BLOCK_TOKENS = 1 << 24
"""Tokens of a block at most, but for a document that alone has more."""
PROGRESS, LENGTHS = ".progress.json", ".lengths.tmp"


@dataclass(frozen=True)
class Block:
    """Whole documents, one after the other."""

    first: int  # number of the first of them
    ids: np.ndarray  # [sum(lengths)]
    lengths: np.ndarray  # tokens of each, int64 [documents]


@dataclass(frozen=True)
class Rewritten:
    """What becomes of a block."""

    ids: np.ndarray
    lengths: np.ndarray  # of the new documents
    counts: dict[str, int]  # for the card, added up over all blocks


@dataclass
class _Done:
    """How far a run is."""

    made_from: dict[str, Any]
    read: int = 0  # documents of the source
    documents: int = 0  # written
    size: int = 0  # bytes written
    crc: int = 0  # of them
    counts: dict[str, int] = field(default_factory=dict)


def told_of(source: Path) -> dict[str, Any]:
    """What the card of ``source`` tells that is true of all data sets made from it as well."""
    card = read_card(source) or {}
    told = card.get("made_from", {}) | card
    return {
        name: told[name]
        for name in ("tokenizer_sha256", "eod_id", "bos_id", "vocab_size")
        if told.get(name) is not None
    }


def rewrite(
    source: Indexed,
    output: Path,
    name: str,
    options: dict[str, Any],
    change: Callable[[Block], Rewritten],
    told: dict[str, Any],
) -> dict[str, Any]:
    """Write OUTPUT.bin, .idx and .json, whole or not at all; done already, it does nothing.

    Args:
        source: the data set to read; a document may have several sequences.
        output: of the data set to write, a sequence each document.
        name: of the card's entry that says what it was made from.
        options: all that ``change`` depends on, for that entry.
        change: of a block, and of nothing else.
        told: more for the card.

    Returns:
        the card.

    Raises:
        ValueError: the place is taken, or holds the beginnings of something else; or nothing is left.
    """
    check_prefix(output, (".bin", ".idx"), "--output")
    progress_file, lengths_file = append_suffix(output, PROGRESS), append_suffix(output, LENGTHS)
    refuse_over_inputs(
        [*data_set_files(output), progress_file, lengths_file], data_set_files(source.prefix), "--output"
    )
    made_from = {
        "path": real_prefix(source.prefix),
        "documents": source.documents,
        "tokens": source.tokens,
        "idx_crc32": crc32(append_suffix(source.prefix, ".idx")),
        **options,
    }
    card = read_card(output)
    if card is not None:
        remedy = files_of(output, card)
        refuse_difference(append_suffix(output, ".json"), card.get(name, {}), made_from, remedy, "--output")
        print(f"{output}: already done")
    else:
        refuse_without_card(output, "--output")
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = append_suffix(output, ".bin.tmp")
        with lock(temporary):
            done = _done_before(output, made_from)
            with open(temporary, "r+b") as ids, open(lengths_file, "ab") as lengths:
                ids.truncate(done.size)
                ids.seek(done.size)
                lengths.truncate(done.documents * 4)
                _write(source, done, change, ids, lengths, progress_file)
            card = _finish(source, output, done, {name: made_from} | told)
    for file in (progress_file, lengths_file):
        file.unlink(missing_ok=True)
    return card


def _done_before(output: Path, made_from: dict[str, Any]) -> _Done:
    """What an earlier run has on the disk."""
    file = append_suffix(output, PROGRESS)
    try:
        done = _Done(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return _Done(made_from)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} does not say how far a run is, and its place is for that: move it away"
        ) from error
    written = [append_suffix(output, end) for end in (".bin.tmp", LENGTHS, PROGRESS)]
    refuse_difference(file, done.made_from, made_from, ", ".join(map(str, written)), "--output")
    sizes = (done.size, done.documents * 4)
    if any(
        not file.is_file() or file.stat().st_size < size for file, size in zip(written, sizes, strict=False)
    ):
        return _Done(made_from)  # stopped when its files had their places already, but for the card
    print(f"{output}: {done.read:,} of {made_from['documents']:,} documents are done already", flush=True)
    return done


def _write(
    source: Indexed,
    done: _Done,
    change: Callable[[Block], Rewritten],
    ids: IO[bytes],
    lengths: IO[bytes],
    progress_file: Path,
) -> None:
    with byte_progress() as progress:
        task = progress.add_task("write", total=source.tokens * source.dtype.itemsize, note="")
        for block in _blocks(source, done.read):
            new = change(block)
            content = new.ids.astype(source.dtype, copy=False).tobytes()
            ids.write(content)
            lengths.write(new.lengths.astype(np.int32).tobytes())
            done.read = block.first + len(block.lengths)
            done.documents += len(new.lengths)
            done.size += len(content)
            done.crc = zlib.crc32(content, done.crc)
            done.counts = dict(Counter(done.counts) + Counter(new.counts))
            for file in (ids, lengths):
                file.flush()
                os.fsync(file.fileno())
            write_json(progress_file, asdict(done))
            progress.update(task, advance=block.ids.nbytes)


def _blocks(source: Indexed, first: int) -> Iterator[Block]:
    """The documents from number ``first`` on."""
    lengths = source.document_lengths()
    ends = np.cumsum(lengths)
    begin = int(ends[first - 1]) if first else 0
    with open(append_suffix(source.prefix, ".bin"), "rb") as file:
        file.seek(begin * source.dtype.itemsize)
        while first < len(lengths):
            stop = max(first + 1, int(np.searchsorted(ends, begin + BLOCK_TOKENS, side="right")))
            count = int(ends[stop - 1]) - begin
            yield Block(first, np.fromfile(file, source.dtype, count=count), lengths[first:stop])
            first, begin = stop, begin + count


def _finish(source: Indexed, output: Path, done: _Done, more: dict[str, Any]) -> dict[str, Any]:
    """The index, and all files in their places."""
    if not done.documents:
        for end in (".bin.tmp", LENGTHS, PROGRESS):
            append_suffix(output, end).unlink(missing_ok=True)
        raise ValueError(f"nothing of {source.prefix} would be left, and nothing is written: keep more of it")
    index = append_suffix(output, ".idx.tmp")
    write_index(index, source.dtype, _length_blocks(append_suffix(output, LENGTHS), done.documents))
    content = {
        "documents": done.documents,
        "tokens": done.size // source.dtype.itemsize,
        "dtype": source.dtype.name,
        **told_of(source.prefix),
        **more,
        "counts": done.counts,
        "crc32": done.crc,
    }
    return put_in_place(output, [".bin", ".idx"], content)


def _length_blocks(file: Path, documents: int) -> Iterator[np.ndarray]:
    with open(file, "rb") as lengths:
        for start in range(0, documents, BLOCK):
            yield np.fromfile(lengths, np.int32, count=min(BLOCK, documents - start))

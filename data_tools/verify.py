"""Whether a PREFIX.bin and .idx are whole, belong together, and hold what was written."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.cards import read_card
from data_tools.files import append_suffix, crc32
from data_tools.indexed import Indexed, open_indexed
from data_tools.merge import IDS
from data_tools.progress import byte_progress

CHUNK_BYTES = 1 << 25
ANY_ID = 1 << 31
"""The vocabulary of a merge of data sets without cards: any id that is not negative."""


def verify(prefix: Path, *, vocab_size: int | None = None) -> None:
    """Check sizes, offsets, checksums and every id; print one line when all is well.

    Args:
        prefix: path without .bin or .idx.
        vocab_size: ids are below it; by default what the card says.

    Raises:
        FileNotFoundError, ValueError: see ``open_indexed``.
        ValueError: a sequence does not begin where the one before it ends, the document indices do not rise
            from the first sequence to the last, a checksum is another than when it was written, an id is not
            below ``vocab_size``, or there is neither a card nor a ``vocab_size``.
    """
    indexed, card = open_indexed(prefix), read_card(prefix)
    if vocab_size is None:
        if card is None:
            raise ValueError(f"{prefix}.json is not there to tell the vocabulary: give --tokenizer-model")
        vocab_size = card.get("vocab_size", ANY_ID)
    _check_index(indexed)
    if card is not None:
        _check_card(indexed, card)
    with byte_progress() as progress:
        task = progress.add_task("verify", total=indexed.tokens * indexed.dtype.itemsize, note="")
        for size in _check_content(indexed, card, vocab_size):
            progress.update(task, advance=size)
    told = "" if card is not None else " (no card, so no checksums to compare with)"
    if vocab_size == ANY_ID:
        told = " (the vocabulary is not known: --tokenizer-model has the ids compared with it)"
    print(f"{prefix}: whole, {indexed.documents:,} documents, {indexed.tokens:,} tokens{told}")


def _check_index(indexed: Indexed) -> None:
    lengths = indexed.lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    if not np.array_equal(indexed.offsets, (ends - lengths) * indexed.dtype.itemsize):
        raise ValueError(f"{indexed.prefix}.idx: the sequences do not follow one another: tokenize again")
    indexed.check_documents()


def _check_card(indexed: Indexed, card: dict[str, Any]) -> None:
    for name, found in (("documents", indexed.documents), ("tokens", indexed.tokens)):
        if card[name] != found:
            raise ValueError(f"{indexed.prefix}.json speaks of {card[name]} {name}, the .idx of {found}")
    for end, size in card["file_bytes"].items():
        file = append_suffix(indexed.prefix, end)
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(
                f"{file} is missing or not the {size} bytes that the .json tells: tokenize again"
            )
    if "idx_crc32" in card and crc32(append_suffix(indexed.prefix, ".idx")) != card["idx_crc32"]:
        raise ValueError(f"{indexed.prefix}.idx has changed since it was written (checksum): tokenize again")
    ids = append_suffix(indexed.prefix, IDS)
    if IDS in card["file_bytes"]:
        with open(ids, "rb") as records:
            lines = sum(part.count(b"\n") for part in iter(lambda: records.read(CHUNK_BYTES), b""))
        if lines != indexed.documents:
            raise ValueError(f"{ids} holds {lines} ids for {indexed.documents} documents: tokenize again")


def _check_content(indexed: Indexed, card: dict[str, Any] | None, vocab_size: int) -> Iterator[int]:
    """Go through the .bin once; yields the bytes done."""
    bin_file = append_suffix(indexed.prefix, ".bin")
    whole = [
        {
            "bytes": indexed.tokens * indexed.dtype.itemsize,
            "crc32": None if card is None else card.get("crc32"),
        }
    ]
    segments = (card or {}).get("segments", whole)
    position = 0
    with open(bin_file, "rb") as file:
        for segment in segments:
            crc, left = 0, segment["bytes"]
            while left:
                content = file.read(min(left, CHUNK_BYTES))
                ids = np.frombuffer(content, indexed.dtype)
                _check_ids(indexed, ids, position // indexed.dtype.itemsize, vocab_size)
                crc = zlib.crc32(content, crc)
                left, position = left - len(content), position + len(content)
                yield len(content)
            if segment["crc32"] not in (None, crc):
                raise ValueError(
                    f"{bin_file}: bytes {position - segment['bytes']:,} to {position:,} have changed "
                    "since they "
                    "were written (checksum): tokenize again"
                )


def _check_ids(indexed: Indexed, ids: np.ndarray, first: int, vocab_size: int) -> None:
    if not ids.size or (int(ids.max()) < vocab_size and int(ids.min()) >= 0):
        return
    wrong = int(np.flatnonzero((ids < 0) | (ids >= vocab_size))[0])
    sequence = int(np.searchsorted(np.cumsum(indexed.lengths, dtype=np.int64), first + wrong, side="right"))
    raise ValueError(
        f"{indexed.prefix}.bin: sequence {sequence} holds id {ids[wrong]}, not below {vocab_size}: give the "
        "--tokenizer-model that it was made with, or tokenize again"
    )

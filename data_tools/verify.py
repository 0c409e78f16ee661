"""Whether a PREFIX.bin and .idx are whole and belong together, and every id is in the vocabulary."""

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.files import append_suffix
from data_tools.megatron import indexed_dataset
from data_tools.progress import byte_progress

# Megatron's index (_IndexWriter in megatron/core/datasets/indexed_dataset.py): magic, version, dtype code,
# number of sequences, number of document indices; then the sequences' int32 lengths and int64 offsets, and
# the int64 document indices.
HEADER = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
CHUNK_TOKENS = 1 << 24


def open_whole(prefix: Path) -> Any:
    """Megatron's ``IndexedDataset`` of PREFIX.bin/.idx, once their sizes are known to be right.

    Raises:
        FileNotFoundError: the .bin or .idx is missing.
        ValueError: the .idx is something else or truncated, or the .bin has another size than it says.
    """
    bin_file, idx_file = append_suffix(prefix, ".bin"), append_suffix(prefix, ".idx")
    for file in (bin_file, idx_file):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file (give the path without .bin or .idx)")
    with open(idx_file, "rb") as index:
        header = index.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{idx_file} is not an index of Megatron's: tokenize again")
    *_, sequences, documents = HEADER.unpack(header)
    _check_size(idx_file, HEADER.size + 12 * sequences + 8 * documents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no rank
        dataset = indexed_dataset().IndexedDataset(str(prefix))
    tokens = int(dataset.sequence_lengths.sum(dtype=np.int64))
    _check_size(bin_file, tokens * np.dtype(dataset.index.dtype).itemsize)
    return dataset


def _check_size(file: Path, expected: int) -> None:
    if (size := file.stat().st_size) != expected:
        raise ValueError(f"{file} holds {size} bytes, the .idx speaks of {expected}: tokenize again")


def verify(prefix: Path, *, vocab_size: int) -> None:
    """Check sizes, offsets and every id; print one line when all is well.

    Raises:
        FileNotFoundError, ValueError: see ``open_whole``.
        ValueError: a sequence does not begin where the one before it ends, the document indices do not rise
            from the first sequence to the last, or an id is not below ``vocab_size``.
    """
    index = open_whole(prefix).index
    dtype, documents = np.dtype(index.dtype), index.document_indices
    lengths = index.sequence_lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    if not np.array_equal(index.sequence_pointers, (ends - lengths) * dtype.itemsize):
        raise ValueError(f"{prefix}.idx: the sequences do not follow one another: tokenize again")
    if documents[0] != 0 or documents[-1] != len(lengths) or np.any(np.diff(documents) < 0):
        raise ValueError(f"{prefix}.idx: the documents do not cover the sequences in order: tokenize again")
    bin_file, tokens = append_suffix(prefix, ".bin"), int(lengths.sum())
    with byte_progress() as progress, open(bin_file, "rb") as file:
        task = progress.add_task("verify", total=tokens * dtype.itemsize, note="")
        for start in range(0, tokens, CHUNK_TOKENS):
            ids = np.fromfile(file, dtype=dtype, count=CHUNK_TOKENS)
            wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size))
            if wrong.size:
                first = int(wrong[0])
                sequence = int(np.searchsorted(ends, start + first, side="right"))
                raise ValueError(
                    f"{bin_file}: sequence {sequence} holds id {ids[first]}, not below {vocab_size}: "
                    "give the --tokenizer-model that it was made with, or tokenize again"
                )
            progress.update(task, advance=ids.nbytes)
    print(f"{prefix}: whole, {len(documents) - 1:,} documents, {tokens:,} tokens")

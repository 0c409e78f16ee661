"""Megatron's .bin/.idx, written and read a block at a time.

Megatron's own ``IndexedDatasetBuilder`` keeps a Python list entry for every document and brings torch, ten
seconds a process; here an index of billions of documents costs 4 bytes each. The layout is the one of
megatron/core/datasets/indexed_dataset.py (``_IndexWriter``), and the tests compare the files byte for byte.

    .bin  token ids of all sequences, one after the other, uint16 or int32
    .idx  header; int32 [n] sequence lengths; int64 [n] offsets in .bin in bytes; int64 [d] document indices

A document that ``phd data`` writes is one sequence, so d = n + 1.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_tools.files import append_suffix

HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document indices
MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
BLOCK = 1 << 20
"""Index entries handled at a time."""


def token_dtype(vocab_size: int) -> np.dtype:
    """What Megatron takes for ids of a vocabulary (``DType.optimal_dtype``)."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def write_index(
    path: Path,
    dtype: np.dtype,
    lengths: Iterable[np.ndarray],
    document_ends: Iterable[np.ndarray] | None = None,
) -> None:
    """Write an .idx.

    Args:
        path: the .idx.
        dtype: of the ids in the .bin.
        lengths: blocks of sequence lengths, int32; gone through once, to its end before ``document_ends``.
        document_ends: blocks of sequence numbers, int64, that follow the last sequence of each document;
            by default every sequence is a document.
    """
    code = next(code for code, known in DTYPES.items() if known == dtype)
    sequences, offset = 0, 0
    with open(path, "wb") as file, open(append_suffix(path, ".offsets"), "w+b") as offsets:
        file.write(HEADER.pack(MAGIC, VERSION, code, 0, 0))
        for block in lengths:
            ends = offset + np.cumsum(block, dtype=np.int64) * dtype.itemsize
            if len(block):
                starts = np.concatenate(([offset], ends[:-1]))
                file.write(block.astype(np.int32, copy=False).tobytes())
                offsets.write(starts.astype(np.int64, copy=False).tobytes())
                offset, sequences = int(ends[-1]), sequences + len(block)
        offsets.seek(0)
        while part := offsets.read(1 << 24):
            file.write(part)
        documents = 0
        file.write(np.zeros(1, np.int64).tobytes())
        for block in _every_sequence(sequences) if document_ends is None else document_ends:
            file.write(block.astype(np.int64, copy=False).tobytes())
            documents += len(block)
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, code, sequences, documents + 1))
    append_suffix(path, ".offsets").unlink()


def _every_sequence(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, BLOCK):
        yield np.arange(start, min(start + BLOCK, count), dtype=np.int64) + 1


@dataclass(frozen=True)
class Indexed:
    """A PREFIX.bin/.idx whose sizes are right.

    Its arrays are memory maps, made when they are asked for: each keeps a file open, and a corpus has more
    units than a process may have open files (1024 on many machines).
    """

    prefix: Path
    dtype: np.dtype
    sequences: int
    documents: int
    tokens: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int32 [sequences]."""
        return self._map(np.int32, self.sequences, HEADER.size)

    @property
    def offsets(self) -> np.ndarray:
        """Where each sequence begins in the .bin, in bytes, int64 [sequences]."""
        return self._map(np.int64, self.sequences, HEADER.size + 4 * self.sequences)

    @property
    def document_indices(self) -> np.ndarray:
        """The first sequence of each document, and the end of the last, int64 [documents + 1]."""
        return self._map(np.int64, self.documents + 1, HEADER.size + 12 * self.sequences)

    def _map(self, dtype: type, count: int, offset: int) -> np.ndarray:
        if not count:
            return np.zeros(0, dtype)
        return np.memmap(append_suffix(self.prefix, ".idx"), dtype, "r", offset=offset, shape=(count,))

    def read(self, sequence: int, length: int | None = None) -> np.ndarray:
        """The first ``length`` ids of a sequence (all by default)."""
        whole = int(self.lengths[sequence])
        count = whole if length is None else min(length, whole)
        offset = int(self.offsets[sequence])
        return np.fromfile(append_suffix(self.prefix, ".bin"), self.dtype, count=count, offset=offset)

    def document_lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [documents].

        Raises:
            ValueError: the documents do not cover the sequences in order.
        """
        self.check_documents()
        ends = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
        return np.diff(ends[self.document_indices])

    def check_documents(self) -> None:
        """Raise ValueError unless the documents cover the sequences in order."""
        documents = self.document_indices
        if documents[0] != 0 or documents[-1] != self.sequences or np.any(np.diff(documents) < 0):
            raise ValueError(
                f"{self.prefix}.idx: the documents do not cover the sequences in order: tokenize again"
            )

    def length_blocks(self) -> Iterator[np.ndarray]:
        """The sequence lengths, ``BLOCK`` at a time."""
        lengths = self.lengths
        for start in range(0, self.sequences, BLOCK):
            yield lengths[start : start + BLOCK]


def open_indexed(prefix: Path) -> Indexed:
    """Open PREFIX.bin and .idx.

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
    _, _, code, sequences, documents = HEADER.unpack(header)
    if code not in DTYPES:
        raise ValueError(
            f"{idx_file} speaks of a data type {code} that Megatron does not have: tokenize again"
        )
    dtype = np.dtype(DTYPES[code])
    _check_size(idx_file, HEADER.size + 12 * sequences + 8 * documents)
    if not documents:
        raise ValueError(f"{idx_file} has no document entries, not even the first: tokenize again")
    opened = Indexed(prefix, dtype, sequences, documents - 1, 0)
    if (lengths := opened.lengths).size and lengths.min() < 0:
        raise ValueError(f"{idx_file} has a sequence of {lengths.min()} tokens: tokenize again")
    opened = replace(opened, tokens=int(lengths.sum(dtype=np.int64)))
    _check_size(bin_file, opened.tokens * dtype.itemsize)
    return opened


def _check_size(file: Path, expected: int) -> None:
    if (size := file.stat().st_size) != expected:
        raise ValueError(f"{file} holds {size} bytes, the .idx speaks of {expected}: tokenize again")

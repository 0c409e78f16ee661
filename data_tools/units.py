"""Cut the sources into work units, each of which becomes one shard.

A unit is one or more byte ranges of files. Where the cuts lie depends on the inputs alone, never on how many
workers or ranks there are, so any number of them makes the same data set. A document belongs to the range in
which it begins (in a .txt with separators: in which the separator before it begins).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.inputs import Source
from data_tools.parquet import open_parquet

SMALLEST, LARGEST = 4 << 20, 1 << 30  # bytes
UNITS = 256
"""About how many a corpus is cut into, as long as they are neither tiny nor huge."""


@dataclass(frozen=True)
class Piece:
    """Bytes (of a parquet file: row groups) ``start`` to ``end`` of one source."""

    source: Source
    start: int
    end: int | None  # None: to the end of the file
    size: int  # stored bytes


@dataclass(frozen=True)
class Unit:
    """What one worker turns into one shard without a stop."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Stored bytes."""
        return sum(piece.size for piece in self.pieces)

    @property
    def name(self) -> str:
        """Of its shard: by what it is made from, so that it is found again when other inputs have changed."""
        return hashlib.sha256(json.dumps(self.identity()).encode()).hexdigest()[:16]

    def identity(self) -> list[list[Any]]:
        """For the shard's card."""
        return [[piece.source.identity(), piece.start, piece.end] for piece in self.pieces]


def unit_bytes(sources: Sequence[Source]) -> int:
    """The default size of a unit."""
    return min(LARGEST, max(SMALLEST, sum(source.size for source in sources) // UNITS))


def plan_units(sources: Sequence[Source], size: int, *, txt_is_split: bool) -> list[Unit]:
    """Units of about ``size`` bytes, in the order of the sources.

    Args:
        sources: the inputs.
        size: bytes; small files share a unit, large ones are cut where their kind allows it.
        txt_is_split: whether .txt files hold documents between separators.
    """
    units: list[Unit] = []
    pending: list[Piece] = []
    pending_bytes = 0

    def flush() -> None:
        nonlocal pending, pending_bytes
        if pending:
            units.append(Unit(tuple(pending)))
        pending, pending_bytes = [], 0

    for source in sources:
        for piece in _cut(source, size, txt_is_split):
            if pending and pending_bytes + piece.size > size:
                flush()
            pending.append(piece)
            pending_bytes += piece.size
    flush()
    return units


def _cut(source: Source, size: int, txt_is_split: bool) -> Iterator[Piece]:
    if source.size <= size or source.compression or (source.kind == "txt" and not txt_is_split):
        yield Piece(source, 0, None, source.size)
    elif source.kind == "parquet":
        yield from _row_groups(source, size)
    else:
        count = -(-source.size // size)
        for number in range(count):
            start, end = source.size * number // count, source.size * (number + 1) // count
            yield Piece(source, start, end, end - start)


def _row_groups(source: Source, size: int) -> Iterator[Piece]:
    with open_parquet(source) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    start, total = 0, 0
    for number, group in enumerate(groups, start=1):
        total += sum(group.column(column).total_compressed_size for column in range(group.num_columns))
        if total >= size or number == len(groups):
            yield Piece(source, start, number, total)
            start, total = number, 0

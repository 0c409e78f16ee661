"""The parts of a rule of keys on the rows of this rank: causal squares and rectangles, and no mask.

Under context parallelism a rank needs, beside its own slices, the keys of other slices that its queries keep:
the other ranks send it these alone.

Legend: s positions of the whole sequence, s_l rows on this rank, t kept keys on this rank, P ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phd.attention.context_parallel import Exchange
from phd.attention.layout import Layout, Piece, pieces_of
from phd.attention.memo import made_once
from phd.rules.keys import Keys, Part


@dataclass(frozen=True, eq=False)
class RowPart:
    """A part by its rows: ``count`` equal blocks of rows, one after another, and the keys that each sees."""

    rows: slice
    samples: slice
    keys: slice | Tensor
    """Rows of the keys for the first block; those for the next begin as many rows later as a block has.
    Scattered ones (count 1) as indices."""
    count: int = 1
    causal: bool = False
    """Row i of a block sees its keys up to i; otherwise all."""

    @property
    def block_rows(self) -> int:
        """Rows of one block."""
        return (self.rows.stop - self.rows.start) // self.count


@dataclass(frozen=True, eq=False)
class Kept:
    """The kept keys of one rank's rows."""

    parts: tuple[RowPart, ...]
    """Each row is in one causal part."""
    exchange: Exchange | None
    """None where the keys are the rank's own rows."""


@made_once(maxsize=64)
def kept_keys(layout: Layout, device: torch.device) -> Kept:
    """The kept keys of ``layout``'s rows; indices on ``device``."""
    row_of: Sequence[int] = range(layout.length)
    exchange = None
    if layout.size > 1:
        row_of, exchange = _exchange(layout, device)
    parts = (
        _on_rows(part, piece, row_of, device)
        for piece in layout.pieces
        for part in _parts(layout.rule.keys, piece)
    )
    return Kept(tuple(parts), exchange)


def _parts(keys: Keys, piece: Piece) -> Iterator[Part]:
    """The parts of a piece; positions count from the document's start."""
    begin = piece.begin - piece.document
    for part in keys.parts(begin, begin + piece.rows.stop - piece.rows.start):
        # slices of heads have layouts of their own; no kernel computes a part with rotated queries yet
        assert part.heads is None and not part.rotation
        yield part


def _on_rows(part: Part, piece: Piece, row_of: Sequence[int], device: torch.device) -> RowPart:
    """``row_of``: of each position that the rank has a key of, the key's row."""
    first = piece.rows.start - (piece.begin - piece.document)
    rows = slice(first + part.begin, first + part.end)
    if len(part.keys) == 1:
        start = row_of[piece.document + part.keys[0].start]
        return RowPart(rows, piece.samples, slice(start, start + len(part.keys[0])), part.count, part.causal)
    scattered = [row_of[piece.document + position] for keys in part.keys for position in keys]
    return RowPart(rows, piece.samples, torch.tensor(scattered, device=device))


def _needed(layout: Layout, rank: int) -> bytearray:
    """For each position whether a rank's rows see its key; their own count as seen."""
    needed = bytearray(layout.length)
    for piece in pieces_of(layout.segments_of(rank), layout.document_starts):
        for part in _parts(layout.rule.keys, piece):
            for keys in part.keys:
                # of all blocks of queries together
                first = piece.document + keys.start
                last = piece.document + keys.stop + (part.count - 1) * part.block
                needed[first:last] = bytes([1]) * (last - first)
    return needed


def _exchange(layout: Layout, device: torch.device) -> tuple[list[int], Exchange]:
    """Returns (for each position the row of its key, or -1 if the key is not needed; the exchange between
    ranks).
    """
    ranks = range(layout.size)
    held = []  # the positions of each rank's rows, in the order of the rows
    for rank in ranks:
        held.append(
            [
                x
                for segment in layout.segments_of(rank)
                for x in range(segment.begin, segment.begin + segment.length)
            ]
        )
    needed = [_needed(layout, rank) for rank in ranks]
    others = [rank for rank in ranks if rank != layout.rank]
    own, mine = held[layout.rank], needed[layout.rank]
    send = {rank: [row for row, position in enumerate(own) if needed[rank][position]] for rank in others}
    fetched = {rank: [position for position in held[rank] if mine[position]] for rank in others}
    kept = own + [position for rank in others for position in fetched[rank]]
    order = sorted(range(len(kept)), key=kept.__getitem__)
    row_of = [-1] * layout.length
    for row, place in enumerate(order):
        row_of[kept[place]] = row
    exchange = Exchange(
        torch.tensor([row for rank in others for row in send[rank]], dtype=torch.long, device=device),
        [len(send.get(rank, ())) for rank in ranks],
        [len(fetched.get(rank, ())) for rank in ranks],
        torch.tensor(order, device=device),
    )
    return row_of, exchange

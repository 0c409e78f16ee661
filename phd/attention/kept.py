"""Which keys the rows of this rank keep on a sparse layer, as causal squares and rectangles: no mask.

A document's first ``local`` blocks are causal attention. Every later block of rows sees itself causally, the
``local - 1`` blocks before it whole, and whole the far blocks (sinks, strided ones) that lie before those.
The far blocks are the same for all rows between two of them, so that one call does for those.

Under context parallelism a rank needs, beside its own slices, the window before each and the far blocks: the
other ranks send it these alone.

Legend: s positions of the whole sequence, s_l rows on this rank, t kept keys on this rank, P ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from phd.attention.layout import Layout, Piece, pieces_of, rank_runs
from phd.attention.memo import made_once
from phd.attention.pattern import Pattern


@dataclass(frozen=True, eq=False)
class Part:
    """``count`` equal blocks of rows, one after another, and the keys that each sees."""

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
class Exchange:
    """What this rank sends to the others of its group and gets from them."""

    send: Tensor
    """Rows of this rank to send, those for rank 0 first."""
    sent: list[int]
    """How many to each rank."""
    received: list[int]
    """How many from each rank."""
    order: Tensor
    """[t]: which of (own rows, received ones) each kept key is: they lie in the order of positions."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The kept keys of one rank's rows."""

    parts: tuple[Part, ...]
    """Each row is in one causal part."""
    exchange: Exchange | None
    """None where the keys are the rank's own rows."""


@made_once(maxsize=16)
def kept_keys(layout: Layout, pattern: Pattern, device: torch.device) -> Kept:
    """The kept keys of ``layout``'s rows; indices on ``device``."""
    row_of: Sequence[int] = range(layout.length)
    exchange = None
    if layout.size > 1:
        row_of, exchange = _exchange(layout, pattern, device)
    parts = (part for piece in layout.pieces for part in _parts(piece, pattern, row_of, device))
    return Kept(tuple(parts), exchange)


def _parts(piece: Piece, pattern: Pattern, row_of: Sequence[int], device: torch.device) -> Iterator[Part]:
    """The parts of a piece. Positions are the document's own here."""
    block = pattern.block
    begin = piece.begin - piece.document
    end = begin + piece.rows.stop - piece.rows.start

    def rows(first: int, last: int) -> slice:
        return slice(piece.rows.start + first - begin, piece.rows.start + last - begin)

    def keys(first: int, last: int) -> slice:
        start = row_of[piece.document + first]
        return slice(start, start + last - first)

    def near(first: int, last: int, count: int = 1) -> Iterator[Part]:
        """Rows in ``count`` blocks: each by itself, and the window before it."""
        size = (last - first) // count
        block_rows = rows(first, last)
        yield Part(block_rows, piece.samples, keys(first, first + size), count, causal=True)
        if (start := pattern.window_start(first)) < first:
            yield Part(block_rows, piece.samples, keys(start, first), count)

    if begin < pattern.local * block:
        begin_rest = min(end, pattern.local * block)
        yield from near(begin, begin_rest)
    else:
        begin_rest = min(end, -(-begin // block) * block)
        if begin < begin_rest:
            yield from near(begin, begin_rest)
    if whole := (end - begin_rest) // block:
        yield from near(begin_rest, begin_rest + whole * block, whole)
    if begin_rest + whole * block < end:
        yield from near(begin_rest + whole * block, end)

    far = [*pattern.far_blocks(pattern.window_start(end - 1) // block)]
    for count, bounds in enumerate(pairwise([*far, end]), start=1):
        # the rows whose window lies behind the first of these blocks, but not yet behind the next
        first, last = ((bound + pattern.local) * block for bound in bounds)
        if max(first, begin) < min(last, end):
            starts = [piece.document + far_block * block for far_block in far[:count]]
            far_rows = [row for start in starts for row in row_of[start : start + block]]
            index = torch.tensor(far_rows, device=device)
            yield Part(rows(max(first, begin), min(last, end)), piece.samples, index)


def _needed(layout: Layout, pattern: Pattern, rank: int) -> bytearray:
    """For each position whether a rank's rows see its key; their own count as seen."""
    needed = bytearray(layout.length)
    runs = rank_runs(layout.length, rank, layout.size)

    def see(first: int, last: int) -> None:
        needed[first:last] = bytes([1]) * (last - first)

    for piece in pieces_of(runs, layout.document_starts):
        begin = piece.begin
        end = begin + piece.rows.stop - piece.rows.start
        start = piece.document
        see(start + pattern.window_start(begin - start), end)
        for block in pattern.far_blocks(pattern.window_start(end - 1 - start) // pattern.block):
            see(start + block * pattern.block, start + (block + 1) * pattern.block)
    return needed


def _exchange(layout: Layout, pattern: Pattern, device: torch.device) -> tuple[list[int], Exchange]:
    """(for each needed position its row among the kept keys, what is sent)."""
    ranks = range(layout.size)
    held = []  # the positions of each rank's rows, which are in their order
    for rank in ranks:
        runs = rank_runs(layout.length, rank, layout.size)
        held.append([x for run in runs for x in range(run.begin, run.begin + run.length)])
    needed = [_needed(layout, pattern, rank) for rank in ranks]
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

"""Which keys the rows of this rank keep on a sparse layer, as causal squares and rectangles: no mask.

A document's first ``local`` blocks are causal attention. Every later block of rows sees itself causally, the
``local - 1`` blocks before it whole, and whole the far blocks (sinks, strided ones) that lie before those.
The far blocks are the same for all rows between two of them, so that one call does for those.

Under context parallelism a rank needs, beside its own slices, the window before each and the far blocks: the
other ranks send it these alone.

Legend: s positions of the whole sequence, s_l rows on this rank, t kept keys on this rank, P ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from phd.attention.layout import Layout, Piece, pieces_of, rank_runs
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


@lru_cache(maxsize=16)
def kept_keys(layout: Layout, pattern: Pattern) -> Kept:
    """The kept keys of ``layout``'s rows."""
    if layout.size == 1:
        row_of, exchange = torch.arange(layout.length), None
    else:
        row_of, exchange = _exchange(layout, pattern)
    device = layout.start.device
    parts = (part for piece in layout.pieces for part in _parts(piece, pattern, row_of, device))
    return Kept(tuple(parts), exchange)


def _parts(piece: Piece, pattern: Pattern, row_of: Tensor, device: torch.device) -> Iterator[Part]:
    """The parts of a piece. Positions are the document's own here."""
    block = pattern.block
    begin = piece.run.begin + piece.rows.start - piece.run.rows.start - piece.document
    end = begin + piece.rows.stop - piece.rows.start

    def rows(first: int, last: int) -> slice:
        return slice(piece.rows.start + first - begin, piece.rows.start + last - begin)

    def keys(first: int, last: int) -> slice:
        start = int(row_of[piece.document + first])
        return slice(start, start + last - first)

    def near(first: int, last: int, count: int = 1) -> Iterator[Part]:
        """Rows in ``count`` blocks: each by itself, and the window before it."""
        size = (last - first) // count
        block_rows = rows(first, last)
        yield Part(block_rows, piece.samples, keys(first, first + size), count, causal=True)
        if (start := pattern.window_start(first)) < first:
            yield Part(block_rows, piece.samples, keys(start, first), count)

    if begin < pattern.local * block:
        yield from near(begin, min(end, pattern.local * block))
        begin_rest = min(end, pattern.local * block)
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
            index = torch.cat([row_of[piece.document + b * block :][:block] for b in far[:count]])
            yield Part(rows(max(first, begin), min(last, end)), piece.samples, index.to(device))


def _needed(layout: Layout, pattern: Pattern, rank: int) -> Tensor:
    """[s]: whether a rank's rows see the key at each position; its own rows count as seen."""
    needed = torch.zeros(layout.length, dtype=torch.bool)
    runs = rank_runs(layout.length, rank, layout.size)
    for piece in pieces_of(runs, layout.document_starts):
        begin = piece.run.begin + piece.rows.start - piece.run.rows.start
        end = begin + piece.rows.stop - piece.rows.start
        start = piece.document
        needed[start + pattern.window_start(begin - start) : end] = True
        for block in pattern.far_blocks(pattern.window_start(end - 1 - start) // pattern.block):
            needed[start + block * pattern.block :][: pattern.block] = True
    return needed


def _exchange(layout: Layout, pattern: Pattern) -> tuple[Tensor, Exchange]:
    """([s], row of each needed position among the kept keys; what is sent)."""
    ranks = range(layout.size)
    row = torch.empty(layout.length, dtype=torch.long)
    owner = torch.empty(layout.length, dtype=torch.long)
    for rank in ranks:
        for run in rank_runs(layout.length, rank, layout.size):
            positions = slice(run.begin, run.begin + run.length)
            row[positions] = torch.arange(run.rows.start, run.rows.stop)
            owner[positions] = rank
    own = owner == layout.rank
    needed = [_needed(layout, pattern, rank) for rank in ranks]
    send = [row[needed[rank] & own] if rank != layout.rank else row[:0] for rank in ranks]
    mine = needed[layout.rank]
    fetched = [(mine & (owner == rank)).nonzero().flatten() for rank in ranks if rank != layout.rank]
    held = torch.cat([own.nonzero().flatten(), *fetched])  # a rank's rows are in the order of positions
    order = held.argsort()
    row_of = torch.full((layout.length,), -1)
    row_of[held[order]] = torch.arange(len(order))
    received = [0 if rank == layout.rank else int((mine & (owner == rank)).sum()) for rank in ranks]
    device = layout.start.device
    exchange = Exchange(torch.cat(send).to(device), [len(rows) for rows in send], received, order.to(device))
    return row_of, exchange

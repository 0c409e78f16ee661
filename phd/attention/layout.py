"""Which positions the rows of a tensor hold, which documents they belong to, and the rule of their attention.

One process without packed documents holds one segment of positions and one document. Packed documents cut a
sample into pieces; context parallelism cuts the sequence into twice as many slices as there are ranks and
gives each rank one slice of the first half and one of the second, so that all do the same causal work.
A piece sees itself causally and everything of its document before its segment: the whole of causal attention
falls into rectangles and triangles, and no mask is needed.

Legend: s positions of the whole sequence, s_l rows on this rank, b samples, K copies. Naive repetition is a
model of one copy on a sequence K times as long: its layout counts the tokens of that sequence as positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from phd.attention.context_parallel import ContextParallel
from phd.attention.memo import made_once
from phd.attention.slices import Segment, rank_segments
from phd.rules.keys import Keys
from phd.rules.rule import AttentionRule


@dataclass(frozen=True)
class Piece:
    """The part of one document in one segment."""

    segment: Segment
    rows: slice
    samples: slice
    """The sample that it belongs to; all samples where there is one document a sample."""
    document: int
    """Position at which the document starts, in this segment or before it."""

    @property
    def begin(self) -> int:
        """Position of the first row."""
        return self.segment.begin + self.rows.start - self.segment.rows.start

    def earlier_keys(self, keys: Segment) -> slice | None:
        """Rows of the segment ``keys`` that every row of the piece sees beyond its own segment, or None."""
        goes_on = self.rows.start == self.segment.rows.start and self.document < self.segment.begin
        skipped = max(0, self.document - keys.begin)
        if not goes_on or keys.begin >= self.segment.begin or skipped >= keys.length:
            return None
        return slice(keys.rows.start + skipped, keys.rows.stop)


@dataclass(frozen=True, eq=False)
class Layout:
    """Rule, positions, documents and bands of the rows on this rank. Make it with ``Layout.of``."""

    rule: AttentionRule
    """Of the heads that are computed with these rows: of a rank's share of them where ranks share heads."""
    parallel: ContextParallel | None
    """The group whose ranks hold the rest of the sequence."""
    length: int
    """s, of the whole sequence."""
    rank: int
    size: int
    """Of the ranks that each hold some positions; one where ranks share heads (a2a)."""
    document_starts: Tensor | None
    """[b, s], on the host."""
    segments: tuple[Segment, ...]
    pieces: tuple[Piece, ...]
    start: Tensor
    """[s_l, b], or [s_l, 1] for all samples: first position whose hidden keys a row's hidden queries see."""
    window: int
    """The longest reach of ``start`` (positions, the own one included)."""
    halo: int
    """Positions before a segment whose hidden keys it needs from the rank that holds them; 0 where no band
    crosses the border between segments."""
    groupless: "Layout | None" = None
    """The same layout without ``parallel``, shared by all calls: what is derived from a layout is cached
    under it."""

    @staticmethod
    def of(
        rule: AttentionRule,
        length: int,
        *,
        document_starts: Tensor | None = None,
        parallel: ContextParallel | None = None,
        device: torch.device | None = None,
    ) -> "Layout":
        """The layout of one rank's rows. Layers of one rule share it.

        Args:
            rule: of the heads of the call's tensors.
            length: s, of the whole sequence.
            document_starts: [b, s], position at which the document of each position starts; None for one
                document a sample. Read on the host: from a GPU that is a synchronisation.
            parallel: the group whose ranks hold the rest of the sequence, two slices each, as Megatron slices
            it.
            device: of the rows; None for the host.

        Raises:
            ValueError: ``document_starts`` is not what it should be, the ranks cannot share the sequence or
                the heads evenly, or a slice is shorter than the window.
        """
        device = torch.device("cpu") if device is None else device
        rank, size = 0, 1
        if parallel is not None and parallel.comm_type != "a2a":
            rank, size = parallel.rank, parallel.size
        elif parallel is not None and (heads := rule.keys.heads) is not None:
            share = parallel.share_of(heads)
            rule = rule.of_heads(parallel.rank * share, (parallel.rank + 1) * share)
        if document_starts is None:
            layout = _one_document(rule, length, rank, size, device)
        else:
            _check(document_starts, length)
            layout = _make(rule, length, document_starts.cpu(), rank, size, device)
        return layout if parallel is None else replace(layout, parallel=parallel, groupless=layout)

    @property
    def local_positions(self) -> int:
        """s_l."""
        ranks = 1 if self.parallel is None else self.parallel.size
        return self.length // (ranks * self.rule.copies.count if self.rule.copies.cached else ranks)

    @property
    def heads(self) -> int | None:
        """How many key/value heads the call's tensors have; None for any number."""
        ranks = self.parallel.size if self.parallel is not None and self.parallel.comm_type == "a2a" else 1
        return None if self.rule.keys.heads is None else ranks * self.rule.keys.heads

    def by_head(self) -> "Iterator[tuple[slice, Layout]]":
        """Slices of the key/value heads that are computed with these rows, where the rule is one by head, and
        the layout of each, whose rule is one for all of its heads."""
        for heads, keys in self.rule.keys.by_head():
            layout = _of_keys(self.groupless or self, keys)
            yield heads, replace(layout, parallel=self.parallel, groupless=layout)

    def to(self, device: torch.device) -> "Layout":
        """The same for rows on another device."""
        return replace(self, start=self.start.to(device))

    def earlier(self, keys: tuple[Segment, ...]) -> Iterator[tuple[Piece, slice]]:
        """Pieces and the rows of ``keys``, the segments of any rank, that all rows of the piece see."""
        for piece in self.pieces:
            for segment in keys:
                rows = piece.earlier_keys(segment)
                if rows is not None:
                    yield piece, rows

    def segments_of(self, rank: int) -> tuple[Segment, ...]:
        """The segments of any rank."""
        return rank_segments(self.length, rank, self.size)


def pieces_of(segments: tuple[Segment, ...], document_starts: Tensor | None) -> Iterator[Piece]:
    """The parts of each document in ``segments``. ``document_starts``: [b, s], or None for one document a
    sample.
    """
    if document_starts is None:
        yield from (Piece(segment, segment.rows, slice(None), 0) for segment in segments)
        return
    for sample, starts in enumerate(document_starts):
        for segment in segments:
            positions = starts[segment.begin : segment.begin + segment.length]
            first = positions == torch.arange(segment.begin, segment.begin + segment.length, device="cpu")
            first[:1] = True  # there may be no position
            bounds = [*first.nonzero().flatten().tolist(), segment.length]
            for begin, end in zip(bounds, bounds[1:], strict=False):
                rows = slice(segment.rows.start + begin, segment.rows.start + end)
                yield Piece(segment, rows, slice(sample, sample + 1), int(positions[begin]))


def _make(
    rule: AttentionRule,
    length: int,
    document_starts: Tensor | None,
    rank: int,
    size: int,
    device: torch.device,
) -> Layout:
    copies = rule.copies
    if copies.cached:
        length = length * copies.count
        if document_starts is not None:
            # a document starts with the first copy of its first token
            document_starts = document_starts.repeat_interleave(copies.count, dim=1) * copies.count
    window = min(copies.window, length)
    segments = rank_segments(length, rank, size)
    pieces = tuple(pieces_of(segments, document_starts))

    # with chunks that divide the slices no band crosses a border, unless documents shift the chunks
    aligned = document_starts is None and copies.chunk is not None and segments[0].length % copies.chunk == 0
    halo = 0 if size == 1 or aligned else window - 1
    if halo > segments[0].length:
        raise ValueError(
            f"a slice of {segments[0].length} positions ({length} positions on {size} context-parallel "
            f"ranks) is shorter than the {halo} positions of the window before it: use fewer ranks or a "
            "smaller window"
        )
    position = torch.cat(
        [torch.arange(segment.begin, segment.begin + segment.length, device="cpu") for segment in segments]
    )
    document = 0 if document_starts is None else document_starts[:, position].T
    start = copies.band_start(position.unsqueeze(1), document).to(device)
    return Layout(rule, None, length, rank, size, document_starts, segments, pieces, start, window, halo)


@made_once(maxsize=256)  # layers whose heads differ each have a rule of their own
def _one_document(rule: AttentionRule, length: int, rank: int, size: int, device: torch.device) -> Layout:
    return _make(rule, length, None, rank, size, device)


def _of_keys(layout: Layout, keys: Keys) -> Layout:
    """The layout of a slice of heads, shared by all layers and slices of one rule where it can be: what is
    derived from a layout is cached under it.
    """
    rule = replace(layout.rule, keys=keys)
    if layout.document_starts is None:
        return _one_document(rule, layout.length, layout.rank, layout.size, layout.start.device)
    return _packed(layout, rule)


@lru_cache(maxsize=64)
def _packed(layout: Layout, rule: AttentionRule) -> Layout:
    return replace(layout, rule=rule)


def _check(document_starts: Tensor, length: int) -> None:
    if document_starts.dim() != 2 or document_starts.shape[1] != length:
        raise ValueError(
            f"document_starts must be [b, s] with s = {length} positions, got {tuple(document_starts.shape)}"
        )
    position = torch.arange(length, device=document_starts.device)
    before = document_starts.roll(1, dims=1)
    before[:, :1] = 0
    if not ((document_starts == position) | (document_starts == before)).all():
        raise ValueError(
            "document_starts must hold for each position its document's first position: its own, or the "
            "same as the position before it"
        )

"""What one forward pass computes: every new column's original, and the hidden tokens that the asked-for
logits and the next step depend on; who of them sees which keys.

Originals are a vanilla model's. Hidden tokens are needed of the columns back to the chunk's start (PHD-CSWA)
or to L(W-1) columns before the first asked-for logits (PHD-SWA through L layers), and not of those whose
keys the cache still holds.

Legend: b samples, K copies, H = K - 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from phd.attention import phd_layout
from phd.attention.layout import Layout
from phd.attention.pattern import Pattern
from phd.attention.rule import can_see
from phd.hf.cache import PHDCache, PHDStaticLayer
from phd.hf.configuration import PHDLlamaConfig
from phd.hf.padding import UNPADDED, Padding
from phd.hf.rows import columns_of, places, rows_for

BLOCK = 64
"""Columns whose hidden tokens are attended for at a time: bounds the masks."""
SLICE = 256
"""Columns whose originals are attended for at a time on a sparse layer: bounds the keys that they gather."""


@dataclass
class Block:
    """Rows of some columns and the keys they see: originals up to ``split`` all of them, later originals and
    the hidden ones by ``mask``. The rows are hidden tokens; in decoding all K copies of the one column; on
    sparse layers originals too, which see no hidden keys.
    """

    rows: slice
    """of the layer's rows, originals first"""
    split: int | None
    """first original that not all rows see; None: the whole buffer lies before it, by ``past_mask``"""
    past_mask: Tensor | None
    """[b|1, 1, rows, split], added to the scores; None if all is seen"""
    originals: slice
    """columns whose originals the mask is for; with ``split`` None those of this step"""
    hidden: slice
    """rows of the hidden keys, the cache's and then this step's"""
    mask: Tensor | None
    """[b|1, 1, rows, originals + hidden]; None if all is seen"""
    kept: Tensor | None = None
    """sparse layers: the originals' rows that this block's ``split`` and ``originals`` count in, [n] or
    [b, n]; None for all"""

    def to(self, device: torch.device) -> "Block":
        """The same on another device."""
        past_mask, mask, kept = (
            None if x is None else x.to(device) for x in (self.past_mask, self.mask, self.kept)
        )
        return replace(self, past_mask=past_mask, mask=mask, kept=kept)


@dataclass(kw_only=True)
class Plan:
    """One forward pass. As it stands by default: a vanilla model's."""

    originals: int
    """q, new columns"""
    columns: int = 0
    """the last so many have their hidden tokens run; more than q: some are brought back from their ids"""
    cached: int = 0
    """columns before these whose hidden keys are read from the cache"""
    keep: int = 0
    """the last columns whose hidden keys the next step may need"""
    end: int | Tensor = 0
    """columns after this step"""
    first: int | None = None
    """sparse layers: first column of which queries run, if not the first new one"""
    padding: Padding = UNPADDED
    blocks: Sequence[Block] = ()
    decode: bool = False
    """all copies of the one new column at once; otherwise originals attend on their own, as in a vanilla
    model
    """
    ring: bool = False
    """the cached hidden keys are a static cache's whole ring, in its order"""
    fused: bool = False
    """``phd.attention.kernels.triton_rows`` runs in place of blocks, but on sparse layers"""
    copies_as_rows: bool = False
    """every copy of every column from the first on, as rows of the batch: no blocks"""
    layout: Layout | None = None
    """of ``phd_attention``, where it serves: all copies as rows, or the originals of sparse layers"""
    step: "Step | None" = None
    """hybrids: what sparse layers' blocks are made from"""
    sparse: dict[Pattern, list[Block]] = field(default_factory=dict)
    """``blocks`` as they are on sparse layers"""
    _originals: dict[Pattern, list[Block]] = field(default_factory=dict)
    _moved: dict[torch.device, "Plan"] = field(default_factory=dict)

    def to(self, device: torch.device | str | int, **_: Any) -> "Plan":
        """The same on another device, once for all layers there. accelerate asks it of what a layer is called
        with, before a layer on another GPU runs.
        """
        device = torch.device(device)
        if device not in self._moved:
            self._moved[device] = replace(
                self,
                end=self.end.to(device) if isinstance(self.end, Tensor) else self.end,
                padding=self.padding.to(device),
                blocks=[block.to(device) for block in self.blocks],
                layout=None if self.layout is None else self.layout.to(device),
                step=None if self.step is None else self.step.to(device),
                sparse={pattern: [x.to(device) for x in blocks] for pattern, blocks in self.sparse.items()},
                _originals={},
                _moved={},
            )
        return self._moved[device]

    def original_blocks(self, pattern: Pattern) -> list[Block]:
        """Blocks of the new columns' originals on a sparse layer; made once for all layers alike."""
        assert self.step is not None
        if pattern not in self._originals:
            self._originals[pattern] = [*self.step.original_blocks(pattern)]
        return self._originals[pattern]


@dataclass(frozen=True)
class Step:
    """What the blocks of a pass are made from."""

    config: PHDLlamaConfig
    past: int
    """columns in the cache"""
    end: int
    """columns after this step"""
    first: int
    """first column whose hidden tokens run"""
    cached: int
    """columns before these whose hidden keys are read from the cache"""
    padding: Padding
    dtype: torch.dtype
    device: torch.device

    def to(self, device: torch.device) -> "Step":
        """The same on another device."""
        return replace(self, padding=self.padding.to(device), device=device)

    @property
    def base(self) -> int:
        """First column of which queries run: sparse layers give their keys in the rows for it."""
        return min(self.first, self.past)

    def hidden_blocks(self, pattern: Pattern | None, *, decode: bool) -> Iterator[Block]:
        """Blocks of the hidden tokens; with ``decode`` of all copies of the one new column."""
        config, width = self.config, self.config.phd_copies - 1
        for begin in range(self.first, self.end, BLOCK):
            stop = min(begin + BLOCK, self.end)
            columns = torch.arange(begin, stop, device=self.device)
            low = max(self.first - self.cached, begin - config.phd_window + 1)
            copies = torch.arange(0 if decode else 1, config.phd_copies, device=self.device)
            query = columns.repeat_interleave(len(copies)), copies.repeat(len(columns))
            keys = torch.arange(low, stop, device=self.device).repeat_interleave(width)
            key_copies = torch.arange(1, width + 1, device=self.device).repeat(stop - low)
            key = torch.cat([columns, keys]), torch.cat([torch.zeros_like(columns), key_copies])
            offset = 0 if decode else self.end - self.past + (begin - self.first) * width
            base = self.first - self.cached
            split, past_mask, kept = self._past(pattern, begin, stop, query)
            yield Block(
                rows=slice(offset, offset + len(query[0])),
                split=split,
                past_mask=past_mask,
                originals=slice(split, split + stop - begin),
                hidden=slice((low - base) * width, (stop - base) * width),
                mask=self._mask(query, key, pattern),
                kept=kept,
            )

    def original_blocks(self, pattern: Pattern) -> Iterator[Block]:
        """Blocks of the new columns' originals on a sparse layer."""
        for begin in range(self.past, self.end, SLICE):
            stop = min(begin + SLICE, self.end)
            query = torch.arange(begin, stop, device=self.device)
            mask = None
            if stop - begin > 1 or self.padding.columns is not None:
                key = self._columns(pattern, begin, stop)
                mask = self._mask((query, torch.zeros_like(query)), (key, torch.zeros_like(key)), pattern)
            yield Block(
                rows=slice(begin - self.past, stop - self.past),
                split=0,
                past_mask=None,
                originals=slice(0, None),
                hidden=slice(0, 0),
                mask=mask,
                kept=self._kept(pattern, begin, stop),
            )

    def _past(
        self, pattern: Pattern | None, begin: int, stop: int, query: tuple[Tensor, Tensor]
    ) -> tuple[int, Tensor | None, Tensor | None]:
        """``split``, ``past_mask`` and ``kept`` of a block of hidden tokens."""
        padding = self.padding.columns
        if pattern is None:
            mask = None
            if padding is not None:
                real = torch.arange(begin, device=self.device) >= padding[:, None]
                mask = _additive(real[:, None, None], self.dtype).expand(-1, -1, len(query[0]), -1)
            return begin, mask, None
        rows = rows_for(pattern, begin, self.padding)
        mask = None
        # queries in one of the pattern's blocks see the same originals before it
        if padding is not None or begin // pattern.block != (stop - 1) // pattern.block:
            key = self._columns(pattern, begin, begin)
            mask = self._mask(query, (key, torch.zeros_like(key)), pattern)
        return rows.far + begin - rows.start, mask, self._kept(pattern, begin, stop)

    def _columns(self, pattern: Pattern, begin: int, stop: int) -> Tensor:
        """Columns of the originals that a block sees, [1, n] or [b, 1, n]."""
        rows = rows_for(pattern, begin, self.padding)
        return columns_of(pattern, rows, stop, self.padding, self.device).unsqueeze(-2)

    def _kept(self, pattern: Pattern, begin: int, stop: int) -> Tensor | None:
        """Where they lie among those that the layer gives; None if they are the same."""
        held = rows_for(pattern, self.base, self.padding)
        if stop == self.end and rows_for(pattern, begin, self.padding) == held:
            return None
        return places(self._columns(pattern, begin, stop).squeeze(-2), held, self.end)

    def _mask(
        self, query: tuple[Tensor, Tensor], key: tuple[Tensor, Tensor], pattern: Pattern | None
    ) -> Tensor:
        return _rule_mask(self.config, query, key, self.padding.columns, self.dtype, pattern)


def plan_all(config: PHDLlamaConfig, originals: int, padding: Padding, device: torch.device) -> Plan:
    """Plan every copy of the sequences' first ``originals`` columns."""
    keep = originals - _band_start(config, originals, padding.distinct)
    layout = phd_layout(
        originals,
        copies=config.phd_copies,
        window=config.phd_window,
        chunk=config.phd_chunk,
        document_starts=padding.document_starts(originals),
        device=device,
    )
    return Plan(
        originals=originals,
        columns=originals,
        keep=keep,
        end=originals,
        padding=padding,
        copies_as_rows=True,
        layout=layout,
    )


def originals_layout(originals: int, padding: Padding, device: torch.device) -> Layout:
    """The ``layout`` of a plan whose sparse layers run the originals of a prompt by ``phd_attention``."""
    starts = padding.document_starts(originals)
    return phd_layout(originals, copies=1, window=1, chunk=None, document_starts=starts, device=device)


def plan_step(
    config: PHDLlamaConfig,
    cache: PHDCache | None,
    past: int,
    originals: int,
    logits: int,
    padding: Padding,
    dtype: torch.dtype,
    device: torch.device,
    fused: bool,
) -> Plan:
    """Plan a step that reads sizes on the host.

    Args:
        past: columns in the cache.
        originals: q, new columns.
        logits: how many of the last columns are asked for.
        padding: columns before each sample's first token.
        dtype: of the masks.
        fused: whether hidden tokens attend by the kernel that needs none.

    Raises:
        ValueError: after a rollback, a sparse layer no longer has what hidden tokens see.
    """
    end = following = past + originals
    if cache is not None and cache.records_past:
        # After a rollback sparse layers hold what this step sees, too little to bring hidden tokens back: so
        # these are kept too, all but a prompt's, whose originals are all there.
        logits = originals if past else logits
        following = end - logits
    first, cached = _first_hidden(config, cache, past, end, logits, padding.distinct)
    step = Step(
        config=config,
        past=past,
        end=end,
        first=first,
        cached=cached,
        padding=padding,
        dtype=dtype,
        device=device,
    )
    if cache is not None:
        cache.check_reach(step.base)
    decode = originals == 1 and first == past
    patterns = config.patterns
    in_blocks = None in patterns and not fused
    return Plan(
        originals=originals,
        columns=end - first,
        cached=cached,
        keep=end - _band_start(config, following, padding.distinct),
        end=end,
        first=step.base,
        padding=padding,
        blocks=[*step.hidden_blocks(None, decode=decode)] if in_blocks else [],
        decode=decode,
        fused=fused,
        step=step,
        sparse={
            pattern: [*step.hidden_blocks(pattern, decode=decode)]
            for pattern in set(patterns)
            if pattern is not None
        },
    )


def _first_hidden(
    config: PHDLlamaConfig, cache: PHDCache | None, past: int, end: int, logits: int, pads: tuple[int, ...]
) -> tuple[int, int]:
    """First column whose hidden tokens run, and how many columns before it have theirs in the cache."""
    if config.phd_copies == 1:
        return end, 0
    first = max(end - logits - config.num_hidden_layers * (config.phd_window - 1), 0)
    if config.phd_chunk is not None:
        first = max(first, min(_start(config.phd_chunk, end - logits, pad) for pad in pads))
    if first < past:
        needed = past - _band_start(config, past, pads)
        static = cache is not None and cache.is_static
        available = needed if static else (cache.hidden_columns() if cache is not None else 0)
        if available >= needed:
            return past, needed
    return first, 0


def plan_static_decode(
    config: PHDLlamaConfig,
    cache: PHDCache,
    padding: Padding,
    dtype: torch.dtype,
    device: torch.device,
    fused: bool,
) -> Plan:
    """Plan one column after a static cache with the same tensors' shapes at every length: for torch.compile
    and CUDA graphs. Unless ``fused``, the cache's buffers are read whole, and masked.
    """
    past, ring = cache.get_seq_length(), config.phd_window - 1
    plan = Plan(
        originals=1,
        columns=1,
        cached=ring,
        keep=1,
        end=past + 1,
        padding=padding,
        decode=True,
        ring=True,
        fused=fused,
    )
    if not fused:
        plan.blocks = [_static_block(config, cache, past, padding, dtype, device)]
    return plan


def _static_block(
    config: PHDLlamaConfig,
    cache: PHDCache,
    past: int | Tensor,
    padding: Padding,
    dtype: torch.dtype,
    device: torch.device,
) -> Block:
    """All copies of column ``past``, over the whole of a static cache's buffers."""
    layer = cache.phd_layers[0]
    assert isinstance(layer, PHDStaticLayer)
    width, ring = config.phd_copies - 1, config.phd_window - 1
    copies = torch.arange(config.phd_copies, device=device)
    query = torch.zeros_like(copies) + past, copies
    columns = torch.arange(layer.max_cache_len, device=device)
    seen = (columns < past)[None]
    if padding.columns is not None:
        seen = seen & (columns >= padding.columns[:, None])
    past_mask = _additive(seen[:, None, None], dtype).expand(-1, -1, config.phd_copies, -1)
    # what lies in the ring: the largest column before ``past`` that goes there; none yet if negative
    slots = torch.arange(ring, device=device)
    slots = past - 1 - (past - 1 - slots) % ring if ring else slots
    own = torch.zeros(1, dtype=slots.dtype, device=device) + past
    hidden = torch.cat([slots, own]).repeat_interleave(width)
    hidden_copies = torch.arange(1, width + 1, device=device).repeat(ring + 1)
    key = torch.cat([own, hidden]), torch.cat([torch.zeros_like(own), hidden_copies])
    return Block(
        rows=slice(0, config.phd_copies),
        split=None,
        past_mask=past_mask,
        originals=slice(0, 1),
        hidden=slice(0, (ring + 1) * width),
        mask=_rule_mask(config, query, key, padding.columns, dtype),
    )


def _start(chunk: int, column: int, pad: int) -> int:
    """First column of the chunk of ``column`` in a sample with ``pad`` columns of padding."""
    return column if column < pad else column - (column - pad) % chunk


def _band_start(config: PHDLlamaConfig, column: int, pads: tuple[int, ...]) -> int:
    """First column whose hidden tokens those of ``column`` see, in any sample."""
    start = max(column - config.phd_window + 1, 0)
    if config.phd_chunk is not None:
        start = max(start, min(_start(config.phd_chunk, column, pad) for pad in pads))
    return min(start, column)


def _rule_mask(
    config: PHDLlamaConfig,
    query: tuple[Tensor, Tensor],
    key: tuple[Tensor, Tensor],
    padding: Tensor | None,
    dtype: torch.dtype,
    pattern: Pattern | None = None,
) -> Tensor:
    """The rule between (column, copy) of queries [rows] and keys ([keys], or [b|1, 1, keys] if they differ),
    [b|1, 1, rows, keys].
    """
    rows, keys = query[0][:, None], key[0]
    if padding is not None:
        rows, keys = rows - padding[:, None, None], keys - padding[:, None, None]
    visible = can_see(
        rows,
        query[1][:, None],
        keys,
        key[1],
        window=config.phd_window,
        chunk=config.phd_chunk,
        pattern=pattern,
    )
    # Padding is seen by itself alone: every row must see something.
    visible &= (keys >= 0) | (keys == rows)
    return _additive(visible.expand(-1, -1, -1) if visible.dim() == 3 else visible[None], dtype).unsqueeze(1)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else the least number: minus infinity makes a row that sees nothing NaN."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)

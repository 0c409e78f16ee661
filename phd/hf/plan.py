"""What one forward pass computes: every new column's original, and the hidden tokens that the asked-for
logits and the next step depend on; who of them sees which keys.

Originals are a vanilla model's. Hidden tokens are needed of the columns back to the chunk's start (PHD-CSWA)
or to L(W-1) columns before the first asked-for logits (PHD-SWA through L layers), and not of those whose
keys the cache still holds.

Legend: b samples, K copies, H = K - 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phd.attention.rule import can_see
from phd.hf.cache import PHDCache, PHDStaticLayer
from phd.hf.configuration import PHDLlamaConfig

BLOCK = 64
"""Columns whose hidden tokens are attended for at a time: bounds the masks."""


@dataclass
class Block:
    """Hidden tokens of some columns (in decoding all K copies of the one) and the keys they see: originals
    up to ``split`` all of them, later originals and the hidden ones by ``mask``.
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
    mask: Tensor
    """[b|1, 1, rows, originals + hidden]"""


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
    """the last columns whose hidden keys the next step needs"""
    end: int | Tensor = 0
    """columns after this step"""
    blocks: Sequence[Block] = ()
    decode: bool = False
    """one block of all copies; otherwise originals attend on their own, as in a vanilla model"""
    ring: bool = False
    """the cached hidden keys are a static cache's whole ring, in its order"""
    copies_as_rows: bool = False
    """every copy of every column from the first on, as rows of the batch: no blocks"""


def plan_all(config: PHDLlamaConfig, originals: int) -> Plan:
    """Plan every copy of the sequences' first ``originals`` columns, unpadded."""
    keep = originals - _band_start(config, originals, [0])
    return Plan(originals=originals, columns=originals, keep=keep, end=originals, copies_as_rows=True)


def plan_step(
    config: PHDLlamaConfig,
    cache: PHDCache | None,
    past: int,
    originals: int,
    logits: int,
    padding: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Plan:
    """Plan a step that reads sizes on the host.

    Args:
        past: columns in the cache.
        originals: q, new columns.
        logits: how many of the last columns are asked for.
        padding: [b], columns before each sample's first token; None for none at all.
        dtype: of the masks.
    """
    width = config.phd_copies - 1
    end = past + originals
    pads = [0] if padding is None else padding.tolist()
    first = max(end - logits - config.num_hidden_layers * (config.phd_window - 1), 0)
    if config.phd_chunk is not None:
        first = max(first, min(_start(config.phd_chunk, end - logits, pad) for pad in pads))
    cached = 0
    if first < past:
        needed = past - _band_start(config, past, pads)
        static = cache is not None and cache.is_static
        available = needed if static else (cache.hidden_columns() if cache is not None else 0)
        if available >= needed:
            first, cached = past, needed
    decode = originals == 1 and first == past
    blocks = []
    for begin in range(first, end, BLOCK):
        stop = min(begin + BLOCK, end)
        columns = torch.arange(begin, stop, device=device)
        low = max(first - cached, begin - config.phd_window + 1)
        copies = torch.arange(0 if decode else 1, config.phd_copies, device=device)
        query = columns.repeat_interleave(len(copies)), copies.repeat(len(columns))
        keys = torch.arange(low, stop, device=device).repeat_interleave(width)
        key_copies = torch.arange(1, width + 1, device=device).repeat(stop - low)
        key = torch.cat([columns, keys]), torch.cat([torch.zeros_like(columns), key_copies])
        offset = 0 if decode else originals + (begin - first) * width
        past_mask = None
        if padding is not None:
            real = torch.arange(begin, device=device) >= padding[:, None]
            past_mask = _additive(real[:, None, None], dtype).expand(-1, -1, len(query[0]), -1)
        base = first - cached
        blocks.append(
            Block(
                rows=slice(offset, offset + len(query[0])),
                split=begin,
                past_mask=past_mask,
                originals=slice(begin, stop),
                hidden=slice((low - base) * width, (stop - base) * width),
                mask=_rule_mask(config, query, key, padding, dtype),
            )
        )
    return Plan(
        originals=originals,
        columns=end - first,
        cached=cached,
        keep=end - _band_start(config, end, pads),
        end=end,
        blocks=blocks,
        decode=decode,
    )


def plan_static_decode(config: PHDLlamaConfig, cache: PHDCache, padding: Tensor, dtype: torch.dtype) -> Plan:
    """Plan one column after a static cache with the same tensors' shapes at every length: for torch.compile.
    The cache's buffers are read whole, and masked.
    """
    layer = cache.phd_layers[0]
    assert isinstance(layer, PHDStaticLayer)
    device = padding.device
    past = cache.get_seq_length()
    width, ring = config.phd_copies - 1, config.phd_window - 1
    copies = torch.arange(config.phd_copies, device=device)
    query = torch.zeros_like(copies) + past, copies
    columns = torch.arange(layer.max_cache_len, device=device)
    seen = (columns < past) & (columns >= padding[:, None])
    past_mask = _additive(seen[:, None, None], dtype).expand(-1, -1, config.phd_copies, -1)
    # what lies in the ring: the largest column before ``past`` that goes there; none yet if negative
    slots = torch.arange(ring, device=device)
    slots = past - 1 - (past - 1 - slots) % ring if ring else slots
    own = torch.zeros(1, dtype=slots.dtype, device=device) + past
    hidden = torch.cat([slots, own]).repeat_interleave(width)
    hidden_copies = torch.arange(1, width + 1, device=device).repeat(ring + 1)
    key = torch.cat([own, hidden]), torch.cat([torch.zeros_like(own), hidden_copies])
    block = Block(
        rows=slice(0, config.phd_copies),
        split=None,
        past_mask=past_mask,
        originals=slice(0, 1),
        hidden=slice(0, (ring + 1) * width),
        mask=_rule_mask(config, query, key, padding.clamp(min=0), dtype),
    )
    return Plan(
        originals=1,
        columns=1,
        cached=ring,
        keep=1,
        end=past + 1,
        blocks=[block],
        decode=True,
        ring=True,
    )


def _start(chunk: int, column: int, pad: int) -> int:
    """First column of the chunk of ``column`` in a sample with ``pad`` columns of padding."""
    return column if column < pad else column - (column - pad) % chunk


def _band_start(config: PHDLlamaConfig, column: int, pads: list[int]) -> int:
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
) -> Tensor:
    """The rule between (column, copy) of queries and keys, [b|1, 1, rows, keys]."""
    rows, keys = query[0][:, None], key[0]
    if padding is not None:
        rows, keys = rows - padding[:, None, None], keys - padding[:, None, None]
    visible = can_see(rows, query[1][:, None], keys, key[1], window=config.phd_window, chunk=config.phd_chunk)
    # Padding is seen by itself alone: every row must see something.
    visible &= (keys >= 0) | (keys == rows)
    return _additive(visible.expand(-1, -1, -1) if visible.dim() == 3 else visible[None], dtype).unsqueeze(1)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else the least number: minus infinity makes a row that sees nothing NaN."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)

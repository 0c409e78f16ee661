"""The rule of PHD in slots: from where on a step needs hidden copies, and masks of who sees whom.

A *slot* is a place in the batch's tensors and in the cache, a *position* counts a sample's own tokens: with
left padding a sample's position is its slot less its padding. Windows are alike in both; chunks follow
positions, so that their starts differ from sample to sample.

Legend: b samples.
"""

import torch
from torch import Tensor

from phd.hf.padding import Padding
from phd.rules.copies import Copies
from phd.rules.rule import AttentionRule


def band_start(copies: Copies, slot: int, padding: Padding) -> int:
    """First slot whose hidden copies those of ``slot`` see, in any sample."""
    return min(slot, max(slot - copies.window + 1, _chunk_start(copies, slot, padding)))


def first_needed(copies: Copies, num_layers: int, slot: int, padding: Padding) -> int:
    """First slot whose hidden copies those from ``slot`` on depend on through all layers: each reaches back a
    window less one, and none beyond the start of the chunk.
    """
    return max(slot - num_layers * (copies.window - 1), _chunk_start(copies, slot, padding))


def _chunk_start(copies: Copies, slot: int, padding: Padding) -> int:
    """First slot of the chunk of ``slot``, in any sample; without chunks the first of all."""
    if copies.chunk is None:
        return 0
    return min(slot if slot < pad else slot - (slot - pad) % copies.chunk for pad in padding.distinct)


def rule_mask(
    rule: AttentionRule,
    query: tuple[Tensor, Tensor],
    key: tuple[Tensor, Tensor],
    padding: Padding,
    dtype: torch.dtype,
) -> Tensor:
    """Who sees whom, to add to the scores.

    Args:
        query: slots and copies, [rows] each.
        key: slots and copies, [keys] each, or [b|1, 1, keys] where slots differ from sample to sample.

    Returns:
        [b|1, 1, rows, keys].
    """
    rows, keys = query[0][:, None], key[0]
    if padding.counts is not None:
        rows, keys = rows - padding.counts[:, None, None], keys - padding.counts[:, None, None]
    # Padding is seen by itself alone: every row must see something.
    visible = rule.sees(rows, query[1][:, None], keys, key[1]) | ((keys == rows) & (key[1] == 0))
    return additive(visible if visible.dim() == 3 else visible[None], dtype).unsqueeze(1)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else the least number: minus infinity makes a row that sees nothing NaN."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)

"""Attention of a few rows over keys in two places: those that all rows see, and those that a mask is for.

The cache's keys are read where they lie, not copied: two softmaxes merged by their log-sum-exp.

Legend: b samples, h query heads, g key/value heads, s rows, t keys, d head dimension.
On CUDA without gradients one kernel of our own takes the place of this, ``attend_rows``.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phd.attention.kernels import attention_forward, merge
from phd.hf.retained import gather

Keys = tuple[Tensor, Tensor]
"""keys and values, [b, g, t, d] each"""
Part = tuple[Tensor, Tensor, Tensor | None]
"""keys [b, g, t, d], values [b, g, t, d], mask [b|1, 1, s, t] to add to the scores (None: all seen)"""


@dataclass
class Block:
    """Rows of some slots' copies, and the keys they see: originals, and hidden keys."""

    rows: slice
    """of the queries"""
    retained: Tensor | None
    """sparse layers: the originals' rows that ``split`` and ``stop`` count in, [n] or [b, n]; None for all"""
    split: int
    """first original that ``mask`` is for"""
    stop: int | None
    """first original that no row sees; None for none"""
    past_mask: Tensor | None
    """[b|1, 1, rows, split], added to the scores; None if all is seen"""
    hidden: slice
    """rows of the hidden keys, the cache's and then this step's"""
    mask: Tensor | None
    """[b|1, 1, rows, originals + hidden]; None if all is seen"""

    def parts(self, originals: Keys, hidden: Keys) -> tuple[Part, Part]:
        """What ``past_mask`` is for, and what ``mask`` is for."""
        if self.retained is not None:
            originals = gather(originals[0], self.retained), gather(originals[1], self.retained)
        past_key, past_value = (x[:, :, : self.split] for x in originals)
        key, value = (x[:, :, self.split : self.stop] for x in originals)
        if self.hidden.stop > self.hidden.start:
            key = torch.cat([key, hidden[0][:, :, self.hidden]], dim=2)
            value = torch.cat([value, hidden[1][:, :, self.hidden]], dim=2)
        return (past_key, past_value, self.past_mask), (key, value, self.mask)


attend_rows: Callable[..., Tensor] | None
"""That of ``phd.attention.kernels.triton_rows``. An exported model's copy of this file comes without it, some
machines without Triton."""
try:
    attend_rows = importlib.import_module("..attention.kernels.triton_rows", __package__).attend_rows
except ImportError:
    attend_rows = None


def attend(query: Tensor, past: Part, near: Part, scale: float) -> Tensor:
    """Softmax attention over both parts' keys.

    Args:
        query: [b, h, s, d].
        past: may have no keys.
        near: every row sees some of them.

    Returns:
        [b, s, h, d].
    """
    if torch.is_grad_enabled() and query.requires_grad:
        return _attend_at_once(query, past, near, scale)
    out, lse = _attention(query, near, scale)
    if past[0].shape[2]:
        merge(out, lse, *_attention(query, past, scale))
    return out.transpose(1, 2)


def _attention(query: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
    key, value, mask = part
    if mask is not None:
        mask = mask.expand(query.shape[0], 1, query.shape[2], key.shape[2])
    return attention_forward(query, key, value, scale, mask, causal=False)


def _attend_at_once(query: Tensor, past: Part, near: Part, scale: float) -> Tensor:
    """The same by one call on copied keys: differentiable."""
    key, value = (torch.cat([a, b], dim=2) for a, b in zip(past[:2], near[:2], strict=True))
    masks = []
    for part_key, _, mask in (past, near):
        mask = query.new_zeros((1, 1, 1, 1)) if mask is None else mask
        masks.append(mask.expand(query.shape[0], 1, query.shape[2], part_key.shape[2]))
    mask = torch.cat(masks, dim=-1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)

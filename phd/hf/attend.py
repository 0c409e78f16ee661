"""Attention of a few rows over keys in two places: those that all rows see, and those that a mask is for.

The cache's keys are read where they lie, not copied: two softmaxes merged by their log-sum-exp.

Legend: b samples, h query heads, g key/value heads, s rows, t keys, d head dimension.
On CUDA without gradients one kernel of our own takes the place of this, ``attend_rows``.
"""

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from phd.attention.kernels import attention_forward

Part = tuple[Tensor, Tensor, Tensor | None]
"""keys [b, g, t, d], values [b, g, t, d], mask [b|1, 1, s, t] to add to the scores (None: all seen)"""

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
        past_out, past_lse = _attention(query, past, scale)
        share = torch.sigmoid(past_lse - lse).unsqueeze(-1)
        out = torch.lerp(out.to(share.dtype), past_out.to(share.dtype), share).to(query.dtype)
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

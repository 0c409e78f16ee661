"""The fast path: one causal flash call over the originals plus a small banded product, merged by log-sum-exp.

The K copies of a query are K times as many query heads over the same keys, those of the original tokens: one
ordinary causal call does the global part of all of them, with no mask. Hidden queries then add the few
hidden keys of their band (``band.py``). In backward the flash kernel is called with the *merged* output and
log-sum-
exp, which makes its result the originals' exact share; the band takes the rest.

Legend: s positions, b samples, K copies, h query heads, g key/value heads, r = h/g, d head dimension.
"""

from typing import Any

import torch
from torch import Tensor

from phd.attention.band import Band
from phd.attention.kernels import causal_backward, causal_forward


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, *, start: Tensor, window: int, scale: float
) -> Tensor:
    """PHD attention with memory O(s).

    Args:
        query: [s, b, K, h, d]; key, value: [s, b, K, g, d].
        start: [s], first position whose hidden keys each position's hidden queries see.
        window: W, the longest reach of ``start``.

    Returns:
        [s, b, K, h, d].
    """
    return _FlashAttention.apply(query, key, value, start, window, scale)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, start: Tensor, window: int, scale: float
    ) -> Tensor:
        copies, heads = query.shape[2:4]
        originals = _repeat_originals(key, copies, heads), _repeat_originals(value, copies, heads)
        out, lse, state = causal_forward(_fold(query), *originals, scale)
        out, lse = _unfold(out, copies), _unfold(lse.unsqueeze(-1), copies).squeeze(-1)
        if copies > 1:
            Band(query, key.shape[3], start, window, scale).merge(out, lse, query, key, value)
        ctx.save_for_backward(query, key, value, start, out, lse)
        ctx.window, ctx.scale, ctx.state = window, scale, state
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, start, out, lse = ctx.saved_tensors
        copies, heads = query.shape[2:4]
        groups = key.shape[3]
        originals = _repeat_originals(key, copies, heads), _repeat_originals(value, copies, heads)
        folded_lse = _fold(lse.unsqueeze(-1)).squeeze(-1)
        grad_query, *grads_repeated = causal_backward(
            _fold(grad_out), _fold(query), *originals, _fold(out), folded_lse, ctx.state, ctx.scale
        )
        grad_query = _unfold(grad_query, copies)
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
        for grad, repeated in zip((grad_key, grad_value), grads_repeated, strict=True):
            # [b, K*h, s, d] -> [s, b, g, d]: every copy and every head of the group read the same key
            grad[:, :, 0] = repeated.unflatten(1, (copies, groups, -1)).sum((1, 3)).permute(2, 0, 1, 3)
        if copies > 1:
            band = Band(query, groups, start, ctx.window, ctx.scale)
            hidden_query, hidden_key, hidden_value = band.backward(grad_out, query, key, value, out, lse)
            grad_query[:, :, 1:] += hidden_query
            grad_key[:, :, 1:] = hidden_key
            grad_value[:, :, 1:] = hidden_value
        return grad_query, grad_key, grad_value, None, None, None


def _fold(rows: Tensor) -> Tensor:
    """[s, b, K, h, x] -> [b, K*h, s, x]: copies become heads. A view."""
    return rows.flatten(2, 3).permute(1, 2, 0, 3)


def _unfold(heads: Tensor, copies: int) -> Tensor:
    """[b, K*h, s, x] -> [s, b, K, h, x]."""
    return heads.permute(2, 0, 1, 3).unflatten(2, (copies, -1))


def _repeat_originals(rows: Tensor, copies: int, heads: int) -> Tensor:
    """Keys or values [s, b, K, g, d] -> those of the originals for every folded query head, [b, K*h, s,
    d].
    """
    groups = rows.shape[3]
    # [s, b, g, d] -> [b, K, g, r, s, d]
    originals = rows[:, :, 0].permute(1, 2, 0, 3)[:, None, :, None]
    return originals.expand(-1, copies, -1, heads // groups, -1, -1).flatten(1, 3)

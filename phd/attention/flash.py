"""The fast path: one causal flash call over the originals plus a small banded product, merged by log-sum-exp.

The K copies of a query are more query heads over the same keys, those of the original tokens: one ordinary
causal call does the global part of all of them, with no mask. Hidden queries then add the few hidden keys of
their band (``band.py``). In backward the flash kernel is called with the *merged* output and log-sum-exp:
its result is then the originals' exact share, and the band takes the rest.

Legend: s positions, b samples, K copies, h query heads, g key/value heads, d head dimension.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from phd.attention.band import Band
from phd.attention.kernels import attention_backward, attention_forward


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
        # the kernels want the numbers of a head side by side
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        samples, copies = query.shape[1:3]
        folded_out, folded_lse = attention_forward(
            _fold(query), _fold(_repeat_originals(key)), _fold(_repeat_originals(value)), scale
        )
        out = _unfold(folded_out, samples, copies)
        lse = _unfold(folded_lse.unsqueeze(-1), samples, copies).squeeze(-1)
        if copies > 1:
            Band(query, start, window, scale).merge(out, lse, query, key, value)
        ctx.save_for_backward(query, key, value, start, out, lse)
        ctx.window, ctx.scale = window, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, start, out, lse = ctx.saved_tensors
        samples, copies = query.shape[1:3]
        grad_out = grad_out.contiguous()
        folded = attention_backward(
            _fold(grad_out),
            _fold(query),
            _fold(_repeat_originals(key)),
            _fold(_repeat_originals(value)),
            _fold(out),
            _fold(lse.unsqueeze(-1)).squeeze(-1),
            ctx.scale,
        )
        grad_query, grad_key, grad_value = (_unfold(x, samples, copies) for x in folded)
        # every copy reads the original keys
        for grad in (grad_key, grad_value):
            grad[:, :, 0] = grad.sum(2)
        if copies > 1:
            band = Band(query, start, ctx.window, ctx.scale)
            grad_key[:, :, 1:], grad_value[:, :, 1:] = band.backward(
                grad_out, query, key, value, out, lse, grad_query
            )
        return grad_query, grad_key, grad_value, None, None, None


def _fold(rows: Tensor) -> Tensor:
    """[s, b, K, h, x] -> [1, b*K*h, s, x]: samples and copies become heads."""
    return rows.flatten(1, 3).transpose(0, 1).unsqueeze(0)


def _unfold(heads: Tensor, samples: int, copies: int) -> Tensor:
    """Inverse of ``_fold``: [1, b*K*h, s, x] -> [s, b, K, h, x]."""
    return heads.squeeze(0).transpose(0, 1).unflatten(1, (samples, copies, -1))


def _repeat_originals(rows: Tensor) -> Tensor:
    """Keys or values [s, b, K, g, d] with the originals in place of every copy."""
    return rows[:, :, :1].expand_as(rows)

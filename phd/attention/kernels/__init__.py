"""Attention that returns its log-sum-exp, and a backward that takes output and log-sum-exp as arguments;
one signature for all devices.

``packed_*``: many sequences of different lengths, one after another, each causally over itself.

Legend: n batch (rows of all sequences in ``packed_*``), h query heads, g key/value heads (query head i reads
key head i // (h/g)), s query rows, t key rows, d head dimension.
"""

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from phd.attention.kernels.cpu import backward as _cpu_backward
from phd.attention.kernels.cpu import forward as _cpu_forward
from phd.attention.kernels.cuda import backward as _cuda_backward
from phd.attention.kernels.cuda import forward as _cuda_forward
from phd.attention.kernels.cuda import packed_backward as _cuda_packed_backward
from phd.attention.kernels.cuda import packed_forward as _cuda_packed_forward


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: Tensor | None = None,
    *,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """Softmax attention under ``mask``; without one causal, or over all keys.

    Args:
        query: [n, h, s, d]; key, value: [n, g, t, d]. Any strides with d contiguous.
        mask: [n, 1, s, t] in the dtype of the query, added to the scores. Every row sees some key.
        causal: without a mask, whether row i sees keys up to i, or all.

    Returns:
        output [n, h, s, d] with d contiguous, and log-sum-exp [n, h, s] in fp32 (fp64 for fp64).
    """
    forward = _cuda_forward if query.is_cuda else _cpu_forward
    return forward(query, key, value, scale, mask, causal)


def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    mask: Tensor | None = None,
    *,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of ``attention_forward``, arguments as there.

    ``out`` and ``lse`` may be those of a softmax over more keys than these: the result is then the share of
    these keys, as in ring attention.
    """
    backward = _cuda_backward if query.is_cuda else _cpu_backward
    return backward(grad_out, query, key, value, out, lse, scale, mask, causal)


def packed_forward(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention of each sequence over itself.

    Args:
        query: [n, h, d]; key, value: [n, g, d].
        lengths: of the sequences; their sum is n.

    Returns:
        output [n, h, d], and log-sum-exp [n, h] in fp32 (fp64 for fp64).
    """
    if query.is_cuda:
        return _cuda_packed_forward(query, key, value, lengths, scale)
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    for rows in _sequences(lengths):
        # [rows, h, d] -> [1, h, rows, d]
        q, k, v = (_heads_first(x[rows]) for x in (query, key, value))
        one, one_lse = attention_forward(q, k, v, scale)
        out[rows], lse[rows] = one[0].transpose(0, 1), one_lse[0].T
    return out, lse


def packed_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    lengths: tuple[int, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of ``packed_forward``; ``out`` and ``lse`` as of
    ``attention_backward``.
    """
    if query.is_cuda:
        return _cuda_packed_backward(grad_out, query, key, value, out, lse, lengths, scale)
    grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for rows in _sequences(lengths):
        do, q, k, v, o = (_heads_first(x[rows]) for x in (grad_out, query, key, value, out))
        ones = attention_backward(do, q, k, v, o, lse[rows].T.unsqueeze(0), scale)
        for grad, one in zip(grads, ones, strict=True):
            grad[rows] = one[0].transpose(0, 1)
    return grads


def _sequences(lengths: tuple[int, ...]) -> Iterator[slice]:
    return (slice(end - length, end) for length, end in zip(lengths, accumulate(lengths), strict=True))


def _heads_first(rows: Tensor) -> Tensor:
    return rows.transpose(0, 1).unsqueeze(0)


def merge(out: Tensor, lse: Tensor, more_out: Tensor, more_lse: Tensor) -> None:
    """Add more keys to a softmax, in place.

    Args:
        out: [..., d]; lse: [...], its log-sum-exp.
        more_out, more_lse: the same queries over keys that were not seen yet.
    """
    # exp(more_lse) / (exp(lse) + exp(more_lse))
    share = torch.sigmoid(more_lse - lse).unsqueeze(-1)
    out.copy_(torch.lerp(out.to(share.dtype), more_out.to(share.dtype), share))
    lse.copy_(torch.logaddexp(lse, more_lse))

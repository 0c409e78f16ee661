"""Attention between the K copies of every token. Torch only: no Megatron, no model.

>>> phd_attention(query, key, value, copies=2, window=16, chunk=32)  # PHD-CSWA-2-16-32

Legend: s positions, b samples, K copies, h query heads, g key/value heads, d head dimension.
Row of the batch axis = sample * K + copy; copy 0 is the original token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from phd.attention.flash import flash_attention
from phd.attention.reference import masked_attention
from phd.attention.rule import band_start, dense_mask, dense_mask_naive

BACKENDS = ("auto", "flash", "reference")
"""auto takes flash."""


def phd_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    copies: int,
    window: int,
    chunk: int | None = None,
    document_starts: Tensor | None = None,
    softmax_scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal self-attention of PHD (window 1), PHD-SWA (no chunk) and PHD-CSWA (arXiv 2504.14992, section 3).

    Args:
        query: [s, b*K, h, d].
        key, value: [s, b*K, g, d]; g divides h (grouped queries).
        copies: K. 1 is plain causal attention.
        window: W in positions, the query's own included.
        chunk: C in positions; None for no chunks.
        document_starts: reserved for packed documents.
        softmax_scale: default d ** -0.5.
        backend: one of BACKENDS. "reference" makes the (K s)^2 mask; for checks, in any dtype.

    Returns:
        [s, b*K, h, d].

    Raises:
        ValueError: an argument is out of range, or shapes do not fit; names the argument.
    """
    scale = _check(query, key, value, copies, softmax_scale, backend)
    if window < 1:
        raise ValueError(f"window must be at least 1 position, got {window}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 position, or None for no chunks, got {chunk}")
    if document_starts is not None:
        raise ValueError("document_starts: packed documents are not supported yet; pass None")
    length = query.shape[0]
    window = min(window, length, chunk or length)
    if backend == "reference":
        mask = dense_mask(length, copies, window=window, chunk=chunk, device=query.device)
        return masked_attention(query, key, value, mask, scale)
    start = band_start(torch.arange(length, device=query.device), window=window, chunk=chunk)
    # [s, b*K, h, d] -> [s, b, K, h, d]
    rows = (x.unflatten(1, (-1, copies)) for x in (query, key, value))
    return flash_attention(*rows, start=start, window=window, scale=scale).flatten(1, 2)


def naive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    copies: int,
    softmax_scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Naive repetition, the baseline of the paper's Figure 1: causal attention over all K*s tokens,
    position-major.

    Arguments, result and errors as in ``phd_attention``.
    """
    scale = _check(query, key, value, copies, softmax_scale, backend)
    length = query.shape[0]
    if backend == "reference":
        mask = dense_mask_naive(length, copies, device=query.device)
        return masked_attention(query, key, value, mask, scale)
    # [s, b*K, h, d] -> [b, h, s*K, d]
    q, k, v = (x.unflatten(1, (-1, copies)).permute(1, 3, 0, 2, 4).flatten(2, 3) for x in (query, key, value))
    context = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    # [b, h, s*K, d] -> [s, b*K, h, d]
    return context.unflatten(2, (length, copies)).permute(2, 0, 3, 1, 4).flatten(1, 2)


def _check(
    query: Tensor, key: Tensor, value: Tensor, copies: int, softmax_scale: float | None, backend: str
) -> float:
    """Validate what both functions share; returns the softmax scale."""
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if query.dim() != 4:
        raise ValueError(f"query must be [s, b*K, h, d], got shape {tuple(query.shape)}")
    length, rows, heads, dim = query.shape
    if rows % copies:
        raise ValueError(
            f"query has {rows} rows, which copies = {copies} does not divide: row = sample * K + copy"
        )
    if (
        key.shape != value.shape
        or key.shape[:2] != (length, rows)
        or key.shape[3] != dim
        or heads % key.shape[2]
    ):
        raise ValueError(
            f"key and value must be [s, b*K, g, d] with g dividing {heads} and the rest as query "
            f"{tuple(query.shape)}, got {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value must have one dtype, got {query.dtype}, {key.dtype} and {value.dtype}"
        )
    return dim**-0.5 if softmax_scale is None else softmax_scale

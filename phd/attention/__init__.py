"""Attention between the K copies of every token. Torch only: no Megatron, no model.

>>> phd_attention(query, key, value, copies=2, window=16, chunk=32)  # PHD-CSWA-2-16-32

Legend: s positions, s_l of them on this context-parallel rank (all without one), b samples, K copies, h query
heads, g key/value heads, d head dimension.
Row of the batch axis = sample * K + copy; copy 0 is the original token.
"""

import torch
from torch import Tensor

from phd.attention.context_parallel import ContextParallel, heads_to_positions, positions_to_heads
from phd.attention.flash import flash_attention
from phd.attention.flex import flex_phd_attention
from phd.attention.layout import Layout, make_layout
from phd.attention.pattern import Pattern
from phd.attention.reference import masked_attention
from phd.attention.rule import dense_mask, dense_mask_naive

BACKENDS = ("auto", "flash", "flex", "reference")
"""auto takes flash; flex is FlexAttention, forward only on a CPU."""


def phd_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    copies: int,
    window: int,
    chunk: int | None = None,
    document_starts: Tensor | None = None,
    pattern: Pattern | None = None,
    layout: Layout | None = None,
    context_parallel: ContextParallel | None = None,
    last_copy_only: bool = False,
    softmax_scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal self-attention of PHD (window 1), PHD-SWA (no chunk) and PHD-CSWA (arXiv 2504.14992, section 3).

    Args:
        query: [s_l, b*K, h, d].
        key, value: [s_l, b*K, g, d]; g divides h (grouped queries).
        copies: K. 1 is plain causal attention.
        window: W in positions, the query's own included.
        chunk: C in positions, counted from the start of the document; None for no chunks.
        document_starts: packed documents: [b, s], the position at which each position's document starts.
            Nothing before it is seen. None for one document a sample.
        pattern: which originals a sparse layer keeps (LongGen); None for full attention.
        layout: what ``phd_layout`` makes of copies, window, chunk, document_starts and context_parallel; made
            anew when None. Callers with many layers make it once.
        context_parallel: the group whose ranks hold the rest of the sequence, two slices each, as Megatron
            slices it.
        last_copy_only: compute the output of the last copy alone (a last layer needs no other).
        softmax_scale: default d ** -0.5.
        backend: one of BACKENDS. "reference" makes the (K s)^2 mask; for checks, in any dtype. "flex" makes
            a block mask of it.

    Returns:
        [s_l, b*K, h, d], or [s_l, b, h, d] with ``last_copy_only``; empty for no positions or samples.

    Raises:
        ValueError: an argument is out of range, or shapes do not fit; names the argument.
    """
    scale = _check(query, key, value, copies, document_starts, softmax_scale, backend, context_parallel)
    if window < 1:
        raise ValueError(f"window must be at least 1 position, got {window}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 position, or None for no chunks, got {chunk}")
    if not query.numel():
        return _nothing(query, key, value, copies, last_copy_only)
    # [s_l, b*K, h, d] -> [s_l, b, K, h, d]
    query, key, value = (x.unflatten(1, (-1, copies)) for x in (query, key, value))
    if last_copy_only:
        query = query[:, :, -1:]
    if backend == "reference":
        mask = dense_mask(
            len(query),
            copies,
            window=window,
            chunk=chunk,
            document_starts=document_starts,
            pattern=pattern,
            device=query.device,
        )
        return masked_attention(query, key, value, mask[:, :, -query.shape[2] :], scale).flatten(1, 2)
    if layout is None:
        layout = phd_layout(
            len(query), copies=copies, window=window, chunk=chunk, document_starts=document_starts,
            context_parallel=context_parallel, device=query.device,
        )  # fmt: skip
    if backend == "flex":
        return flex_phd_attention(
            query, key, value, layout=layout, window=window, chunk=chunk, pattern=pattern, scale=scale
        ).flatten(1, 2)
    return _attend(query, key, value, layout, context_parallel, scale, pattern).flatten(1, 2)


def naive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    copies: int,
    document_starts: Tensor | None = None,
    layout: Layout | None = None,
    context_parallel: ContextParallel | None = None,
    last_copy_only: bool = False,
    softmax_scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Naive repetition, the baseline of the paper's Figure 1: causal attention over all K*s tokens,
    position-major.

    Arguments, result and errors as in ``phd_attention``; ``layout`` is what ``naive_layout`` makes.
    """
    scale = _check(query, key, value, copies, document_starts, softmax_scale, backend, context_parallel)
    if backend == "flex":
        raise ValueError("backend 'flex' has the rule of PHD alone: use 'flash' for naive repetition")
    if not query.numel():
        return _nothing(query, key, value, copies, last_copy_only)
    # [s_l, b*K, h, d] -> [s_l, b, K, h, d]
    query, key, value = (x.unflatten(1, (-1, copies)) for x in (query, key, value))
    if backend == "reference":
        mask = dense_mask_naive(len(query), copies, document_starts=document_starts, device=query.device)
        context = masked_attention(query, key, value, mask, scale)
    else:
        if layout is None:
            layout = naive_layout(
                len(query), copies=copies, document_starts=document_starts,
                context_parallel=context_parallel, device=query.device,
            )  # fmt: skip
        # one copy of a sequence K times as long: [s_l, b, K, h, d] -> [s_l*K, b, 1, h, d]
        query, key, value = (x.transpose(1, 2).flatten(0, 1).unsqueeze(2) for x in (query, key, value))
        context = _attend(query, key, value, layout, context_parallel, scale)
        context = context.squeeze(2).unflatten(0, (-1, copies)).transpose(1, 2)
    return context[:, :, -1] if last_copy_only else context.flatten(1, 2)


def phd_layout(
    rows: int,
    *,
    copies: int,
    window: int,
    chunk: int | None,
    document_starts: Tensor | None = None,
    context_parallel: ContextParallel | None = None,
    device: torch.device | None = None,
) -> Layout:
    """The ``layout`` of ``phd_attention`` for ``rows`` (s_l) rows on ``device``; the rest as there."""
    parallel = context_parallel
    if copies == 1:
        window = 1  # no hidden copies, no band
    ranks = 1 if parallel is None else parallel.size
    rank, size = 0, 1
    if parallel is not None and parallel.comm_type != "a2a":  # a2a: attention itself is over all positions
        rank, size = parallel.rank, parallel.size
    return make_layout(
        rows * ranks,
        window=window,
        chunk=chunk,
        document_starts=document_starts,
        rank=rank,
        size=size,
        device=device,
    )


def naive_layout(
    rows: int,
    *,
    copies: int,
    document_starts: Tensor | None = None,
    context_parallel: ContextParallel | None = None,
    device: torch.device | None = None,
) -> Layout:
    """The ``layout`` of ``naive_attention`` for ``rows`` (s_l) rows on ``device``; the rest as there."""
    if document_starts is not None:
        # a document starts with the first copy of its first token
        document_starts = document_starts.repeat_interleave(copies, dim=1) * copies
    return phd_layout(
        rows * copies,
        copies=1,
        window=1,
        chunk=None,
        document_starts=document_starts,
        context_parallel=context_parallel,
        device=device,
    )


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    parallel: ContextParallel | None,
    scale: float,
    pattern: Pattern | None = None,
) -> Tensor:
    """Fast path: query [s_l, b, m, h, d], key and value [s_l, b, K, g, d] -> [s_l, b, m, h, d]."""
    if parallel is None or parallel.comm_type != "a2a":
        return flash_attention(
            query, key, value, layout=layout, scale=scale, pattern=pattern, parallel=parallel
        )
    # slices of positions with all heads -> all positions with a slice of the heads, and back
    query, key, value = (
        positions_to_heads(x.flatten(1, 2), parallel).unflatten(1, (-1, x.shape[2]))
        for x in (query, key, value)
    )
    context = flash_attention(query, key, value, layout=layout, scale=scale, pattern=pattern)
    return heads_to_positions(context.flatten(1, 2), parallel).unflatten(1, context.shape[1:3])


def _nothing(query: Tensor, key: Tensor, value: Tensor, copies: int, last_copy_only: bool) -> Tensor:
    """Attention of no positions or no samples; gradients of all three are as empty."""
    rows = query[:, copies - 1 :: copies] if last_copy_only else query
    return rows + key.sum() + value.sum()


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    copies: int,
    document_starts: Tensor | None,
    softmax_scale: float | None,
    backend: str,
    parallel: ContextParallel | None,
) -> float:
    """Validate what both functions share; returns the softmax scale."""
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend in ("flex", "reference") and parallel is not None:
        raise ValueError(f"backend {backend!r} does not run context-parallel: use 'flash'")
    if query.dim() != 4:
        raise ValueError(f"query must be [s, b*K, h, d], got shape {tuple(query.shape)}")
    length, rows, heads, dim = query.shape
    if not heads or not dim or (key.dim() == 4 and not key.shape[2]):
        raise ValueError(
            f"query and key need at least 1 head of 1 dimension, got {tuple(query.shape)} and "
            f"{tuple(key.shape)}"
        )
    if rows % copies:
        raise ValueError(
            f"query has {rows} rows, which copies = {copies} does not divide: row = sample * K + copy"
        )
    if document_starts is not None and len(document_starts) != rows // copies:
        raise ValueError(
            f"document_starts must be [b, s] with b = {rows // copies} samples, got "
            f"{tuple(document_starts.shape)}"
        )
    if (
        key.shape != value.shape
        or key.dim() != 4
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
    if parallel is not None and parallel.comm_type == "a2a" and key.shape[2] % parallel.size:
        raise ValueError(
            f"comm_type 'a2a' gives each rank as many key/value heads: {key.shape[2]} heads on "
            f"{parallel.size} ranks do not divide; use 'p2p' or 'all_gather'"
        )
    return dim**-0.5 if softmax_scale is None else softmax_scale

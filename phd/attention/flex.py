"""torch's FlexAttention under a block mask made from the rule: for comparison, and as a fallback.

All copies are one sequence of K s tokens, position-major; blocks of the (K s)^2 square that hold no visible
pair are skipped. Compiled on CUDA, where it has not been run yet. On a CPU it runs as written and forward
only (torch has no backward there).

Legend: s positions, b samples, K copies, m of them asking (all, or the last), h query heads, g key/value
heads, d head dimension.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from phd.attention.pattern import Pattern
from phd.attention.rule import can_see


def flex_phd_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    chunk: int | None,
    document_starts: Tensor | None,
    pattern: Pattern | None,
    scale: float,
) -> Tensor:
    """PHD attention by one FlexAttention call.

    Args:
        query: [s, b, m, h, d]; m is K, or 1 for the last copy alone.
        key, value: [s, b, K, g, d].
        window, chunk: W and C.
        document_starts: [b, s] or None.
        pattern: of a sparse layer, or None.

    Returns:
        [s, b, m, h, d].

    Raises:
        ValueError: gradients are asked for on a CPU.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad:
        raise ValueError("backend 'flex' has no backward on a CPU: use 'flash'")
    length, samples, asking = query.shape[:3]
    copies = key.shape[2]
    if document_starts is None:
        mask = _one_document_mask(length, copies, asking, window, chunk, pattern, query.device)
    else:
        starts = document_starts.to(query.device)
        rule = _rule(copies, asking, window, chunk, pattern, starts)
        mask = _block_mask(rule, samples, length, copies, asking, query.device)
    # [s, b, m, h, d] -> [b, h, s*m, d]
    tokens = (x.permute(1, 3, 0, 2, 4).flatten(2, 3) for x in (query, key, value))
    out = _attention(query.device)(*tokens, block_mask=mask, scale=scale, enable_gqa=True)
    # [b, h, s*m, d] -> [s, b, m, h, d]
    return out.unflatten(2, (length, asking)).permute(2, 0, 3, 1, 4)


def _rule(
    copies: int,
    asking: int,
    window: int,
    chunk: int | None,
    pattern: Pattern | None,
    starts: Tensor | None,
) -> Callable[..., Tensor]:
    """``can_see`` on the indices of tokens in position-major order, as FlexAttention asks it."""

    def visible(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = query // asking
        return can_see(
            position,
            query % asking + copies - asking,
            key // copies,
            key % copies,
            window=window,
            chunk=chunk,
            document_start=None if starts is None else starts[sample, position],
            pattern=pattern,
        )

    return visible


def _block_mask(
    rule: Callable[..., Tensor],
    samples: int | None,
    length: int,
    copies: int,
    asking: int,
    device: torch.device,
) -> BlockMask:
    return create_block_mask(rule, samples, None, length * asking, length * copies, device=str(device))


@lru_cache(maxsize=16)
def _one_document_mask(
    length: int,
    copies: int,
    asking: int,
    window: int,
    chunk: int | None,
    pattern: Pattern | None,
    device: torch.device,
) -> BlockMask:
    return _block_mask(
        _rule(copies, asking, window, chunk, pattern, None), None, length, copies, asking, device
    )


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention)


def _attention(device: torch.device) -> Any:
    return _compiled() if device.type == "cuda" else flex_attention

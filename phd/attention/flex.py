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

from phd.attention.layout import Layout
from phd.attention.memo import made_once
from phd.attention.pattern import Pattern
from phd.attention.rule import can_see


def flex_phd_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: Layout,
    window: int,
    chunk: int | None,
    pattern: Pattern | None,
    scale: float,
) -> Tensor:
    """PHD attention by one FlexAttention call.

    Args:
        query: [s, b, m, h, d]; m is K, or 1 for the last copy alone.
        key, value: [s, b, K, g, d].
        layout: of these rows; the block mask is made once for it.
        window, chunk: W and C.
        pattern: of a sparse layer, or None.

    Returns:
        [s, b, m, h, d].

    Raises:
        ValueError: gradients are asked for on a CPU.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad:
        raise ValueError("backend 'flex' has no backward on a CPU: use 'flash'")
    length, asking = query.shape[0], query.shape[2]
    mask = block_mask(layout, key.shape[2], asking, window, chunk, pattern, query.device)
    # [s, b, m, h, d] -> [b, h, s*m, d]
    tokens = (x.permute(1, 3, 0, 2, 4).flatten(2, 3) for x in (query, key, value))
    out = _on(query.device, flex_attention)(*tokens, block_mask=mask, scale=scale, enable_gqa=True)
    # [b, h, s*m, d] -> [s, b, m, h, d]
    return out.unflatten(2, (length, asking)).permute(2, 0, 3, 1, 4)


@made_once(maxsize=16)
def block_mask(
    layout: Layout,
    copies: int,
    asking: int,
    window: int,
    chunk: int | None,
    pattern: Pattern | None,
    device: torch.device,
) -> BlockMask:
    """The rule on the indices of tokens in position-major order, block by block; the same for all layers and
    steps that share ``layout``.
    """
    # [b, s]; copied, since the layout too may have been made in an evaluation
    starts = None if layout.document_starts is None else layout.document_starts.to(device, copy=True)

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

    samples = None if starts is None else len(starts)
    sizes = layout.length * asking, layout.length * copies
    return _on(device, create_block_mask)(visible, samples, None, *sizes, device=str(device))


def _on(device: torch.device, function: Callable[..., Any]) -> Any:
    """``function``, compiled on CUDA: as written, both make the whole (K s)^2 square."""
    return _compiled(function) if device.type == "cuda" else function


@lru_cache
def _compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function)

"""Attention as one masked softmax over all copies, in any dtype: what the fast path is tested against.

Legend: s positions, b samples, K copies, m of them among the queries, h query heads, g key/value heads, d
head dimension.
"""

import torch
from torch import Tensor

from phd.attention.inputs import checked, nothing
from phd.attention.layout import Layout
from phd.rules.rule import AttentionRule


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scale: float | None = None,
    last_copy_only: bool = False,
) -> Tensor:
    """``phd.attention.attention``, but for the (K s)^2 mask that it makes and ranks that share a sequence.

    Raises:
        ValueError: shapes do not fit, or the layout is of one rank of several.
    """
    if layout.parallel is not None:
        raise ValueError("the reference does not run context-parallel: use the flash backend")
    inputs = checked(query, key, value, layout, scale, last_copy_only)
    copies = layout.rule.copies
    if not query.numel():
        return nothing(query, key, value, copies.count, last_copy_only)
    starts = layout.document_starts
    if copies.cached and starts is not None:
        starts = starts[:, :: copies.count] // copies.count
    masks = [
        dense_mask(layout.rule, len(query), document_starts=starts, device=query.device, head=head)
        for head in range(layout.heads or 1)
    ]
    # [b, g|1, s, m, s, K]
    mask = torch.stack(masks, 1)[:, :, :, -inputs.query.shape[2] :]
    context = masked_attention(inputs.query, inputs.key, inputs.value, mask, inputs.scale)
    return context[:, :, -1] if last_copy_only else context.flatten(1, 2)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention over all copies.

    Args:
        mask: [b, g, s, m, s, K], of samples and key/value heads; an axis of 1 is for all of them.
        query: [s, b, m, h, d], m of the copies; key, value: [s, b, K, g, d].

    Returns:
        [s, b, m, h, d].
    """
    groups = key.shape[3]
    # [s, b, m, h, d] -> [s, b, m, g, h/g, d]
    grouped = query.unflatten(3, (groups, -1))
    scores = torch.einsum("sbjgrd,tbigd->bgrsjti", grouped, key) * scale
    # [b, g, s, m, s, K] -> [b, g, h/g, s, m, s, K]
    scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
    weights = scores.flatten(-2).softmax(dim=-1).view_as(scores)
    return torch.einsum("bgrsjti,tbigd->sbjgrd", weights, value).flatten(3, 4)


def dense_mask(
    rule: AttentionRule,
    length: int,
    *,
    document_starts: Tensor | None = None,
    device: torch.device | None = None,
    head: int = 0,
) -> Tensor:
    """``rule.sees`` in a key/value head as a bool mask [b, s, K, s, K] over (sample, query position, query
    copy, key position, key copy); b = 1 without ``document_starts`` [b, s].
    """
    position = torch.arange(length, device=device)
    copy = torch.arange(rule.copies.count, device=device)
    # [b, s, 1, 1, 1]
    starts = 0 if document_starts is None else document_starts[:, :, None, None, None].to(device)
    queries, keys = (position.view(-1, 1, 1, 1), copy.view(-1, 1, 1)), (position.view(-1, 1), copy)
    mask = rule.sees(*queries, *keys, document_start=starts, head=head)
    return mask if document_starts is not None else mask.unsqueeze(0)

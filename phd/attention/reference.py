"""PHD attention as one masked softmax over all copies: slow, obvious, any dtype. The fast paths are
tested against it.

Legend: s positions, b samples, K copies, h query heads, g key/value heads, d head dimension.
"""

import torch
from torch import Tensor


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention over all copies under ``mask`` [s, K, s, K].

    Args:
        query: [s, b*K, h, d]; key, value: [s, b*K, g, d], row = sample * K + copy.

    Returns:
        [s, b*K, h, d].
    """
    length, copies = mask.shape[:2]
    heads, groups, dim = query.shape[2], key.shape[2], query.shape[3]
    # [s, b*K, h, d] -> [s, b, K, g, h/g, d]
    query = query.unflatten(1, (-1, copies)).unflatten(3, (groups, heads // groups))
    key, value = (x.unflatten(1, (-1, copies)) for x in (key, value))
    scores = torch.einsum("sbjgrd,tbigd->bgrsjti", query, key) * scale
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.flatten(-2).softmax(dim=-1).view_as(scores)
    context = torch.einsum("bgrsjti,tbigd->sbjgrd", weights, value)
    return context.reshape(length, -1, heads, dim)

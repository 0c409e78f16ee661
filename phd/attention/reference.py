"""PHD attention as one masked softmax over all copies: slow, obvious, any dtype. The fast paths are
tested against it.

Legend: s positions, b samples, K copies, h query heads, g key/value heads, d head dimension.
"""

import torch
from torch import Tensor


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention over all copies under ``mask`` [b, s, m, s, K] (b = 1: the same for all samples).

    Args:
        query: [s, b, m, h, d], m of the copies; key, value: [s, b, K, g, d].

    Returns:
        [s, b, m, h, d].
    """
    groups = key.shape[3]
    # [s, b, m, h, d] -> [s, b, m, g, h/g, d]
    grouped = query.unflatten(3, (groups, -1))
    scores = torch.einsum("sbjgrd,tbigd->bgrsjti", grouped, key) * scale
    # [b, s, m, s, K] -> [b, g, h/g, s, m, s, K]
    scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    weights = scores.flatten(-2).softmax(dim=-1).view_as(scores)
    return torch.einsum("bgrsjti,tbigd->sbjgrd", weights, value).flatten(3, 4)

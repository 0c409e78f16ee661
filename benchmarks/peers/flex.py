"""torch's FlexAttention under a block mask made from PHD's rule.

All copies are one sequence of K s tokens, position-major; blocks of the (K s)^2 square that hold no visible
pair are skipped. Compiled on CUDA, where it has not been run yet. On a CPU it runs as written and forward
only (torch has no backward there).

Legend: s positions, b samples, K copies, h query heads, g key/value heads, d head dimension.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from phd.rules.rule import AttentionRule


def flex_attention_of(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    """Attention by ``rule`` in one FlexAttention call: query [s, b*K, h, d], key and value [s, b*K, g, d];
    the result is as the query.
    """
    copies = rule.copies.count
    mask = block_mask(rule, len(query), query.shape[2] // key.shape[2], query.device)
    # [s, b*K, h, d] -> [b, h, s*K, d]
    tokens = (x.unflatten(1, (-1, copies)).permute(1, 3, 0, 2, 4).flatten(2, 3) for x in (query, key, value))
    out = _on(query.device, flex_attention)(
        *tokens, block_mask=mask, scale=query.shape[3] ** -0.5, enable_gqa=True
    )
    # [b, h, s*K, d] -> [s, b*K, h, d]
    return out.unflatten(2, (-1, copies)).permute(2, 0, 3, 1, 4).flatten(1, 2)


@lru_cache
def block_mask(rule: AttentionRule, length: int, each: int, device: torch.device) -> BlockMask:
    """The rule on the indices of tokens in position-major order, block by block; made once for a size.

    Args:
        each: query heads of a key/value head.
    """
    copies, heads = rule.copies.count, rule.keys.heads

    def visible(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        queries, keys = (query // copies, query % copies), (key // copies, key % copies)
        return rule.sees(*queries, *keys, head=head // each)

    tokens, masks = length * copies, None if heads is None else heads * each
    return _on(device, create_block_mask)(visible, None, masks, tokens, tokens, device=str(device))


def _on(device: torch.device, function: Callable[..., Any]) -> Any:
    """``function``, compiled on CUDA: as written, both make the whole (K s)^2 square."""
    return _compiled(function) if device.type == "cuda" else function


@lru_cache
def _compiled(function: Callable[..., Any]) -> Any:
    return torch.compile(function)

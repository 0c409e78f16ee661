"""Every copy of every slot from the first on, the copies as batch rows and attention by ``phd.attention``: as
in pretrain_phd.py. To train, and where logits of a whole long prompt are asked for.

Legend: b samples, K copies, H = K - 1, q slots, a query heads, g key/value heads, d head dimension.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from phd.attention import BACKENDS, Layout
from phd.hf.bands import band_start
from phd.hf.cache import PHDCache
from phd.hf.padding import Padding
from phd.hf.steps import Step
from phd.rules.rule import AttentionRule


class RowsStep(Step):
    """Rows of the batch axis are sample * K + copy."""

    def __init__(
        self, rules: tuple[AttentionRule, ...], count: int, padding: Padding, device: torch.device
    ) -> None:
        super().__init__()
        self.copies, self.count, self.padding = rules[0].copies.count, count, padding
        self.hidden_slots = count
        self.rules = rules
        self.layouts = layouts_of(self.rules, count, padding, device)
        self.retained = count - band_start(rules[0].copies, count, padding)
        """the last slots whose hidden keys the next step may see"""

    def embed(self, embeddings: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        positions = self.padding.positions(torch.arange(self.count, device=embeddings.device))
        if len(positions) > 1:
            positions = positions.repeat_interleave(self.copies, dim=0)
        return copies.transpose(1, 2).flatten(0, 1), positions

    def attend(
        self,
        layer: LlamaAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: PHDCache | None,
        **kwargs: Any,
    ) -> Tensor:
        if cache is not None:
            # [b, K, g, q, d]
            keys, values = (x.unflatten(0, (-1, self.copies)) for x in (key, value))
            cache.update(keys[:, 0], values[:, 0], layer.layer_idx, padding=self.padding)
            # [b, H, g, q, d] -> [b, g, q, H, d] -> [b, g, q*H, d]
            first = self.count - self.retained
            keys, values = (x[:, 1:, :, first:].permute(0, 2, 3, 1, 4).flatten(2, 3) for x in (keys, values))
            cache.phd_layers[layer.layer_idx].retain_hidden(keys, values, self.retained)
        return attend_by_layout(layer, query, key, value, self.layouts[self.rules[layer.layer_idx]])

    def last_copies(self, states: Tensor) -> Tensor:
        return states[self.copies - 1 :: self.copies]


def layouts_of(
    rules: Iterable[AttentionRule], count: int, padding: Padding, device: torch.device
) -> dict[AttentionRule, Layout]:
    """Of the first ``count`` slots."""
    starts = padding.document_starts(count)
    return {rule: Layout.of(rule, count, document_starts=starts, device=device) for rule in {*rules}}


def attend_by_layout(
    layer: LlamaAttention, query: Tensor, key: Tensor, value: Tensor, layout: Layout
) -> Tensor:
    """[b*K, a, q, d] and [b*K, g, q, d] -> [b*K, q, a, d]"""
    attention = BACKENDS["reference" if layer.config._attn_implementation == "eager" else "flash"]
    # [b*K, heads, q, d] -> [q, b*K, heads, d]
    query, key, value = (x.permute(2, 0, 1, 3) for x in (query, key, value))
    return attention(query, key, value, layout, scale=layer.scaling).transpose(0, 1)

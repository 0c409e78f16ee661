"""Naive repetition: Llama on one sequence that has every token K times, all of them cached.

Legend: b samples, q new slots, K copies, h hidden size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from phd.hf.cache import PHDCache
from phd.hf.configuration import PHDLlamaConfig
from phd.hf.padding import Padding
from phd.hf.steps import Step
from phd.hf.steps.llama import LlamaStep


class NaiveStep(Step):
    """The copies of a slot are K neighbouring rows, and attention is causal over rows.

    Args:
        embeddings: [b, q, h] of the new slots.
        past: slots in the cache.
    """

    def __init__(
        self,
        config: PHDLlamaConfig,
        embeddings: Tensor,
        padding: Padding,
        cache: PHDCache | None,
        past: int,
    ) -> None:
        super().__init__()
        self.copies, self.hidden_slots = config.copies, embeddings.shape[1]
        slots = torch.arange(past + self.hidden_slots, device=embeddings.device)
        self.positions = padding.positions(slots[past:])
        count, mask = self.copies.count, None
        if padding.counts is not None:
            mask = (slots >= padding.counts[:, None]).repeat_interleave(count, dim=1)
        # rotary positions may come several times, which transformers would take for packed documents
        rows = torch.arange(past * count, len(slots) * count, device=embeddings.device)[None]
        like = embeddings[:, :, :1].repeat_interleave(count, dim=1)
        self.rows = LlamaStep(config, like, mask, rows, cache)

    def embed(self, embeddings: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        """[b, q*K, h]"""
        count = self.copies.count
        positions = self.positions.repeat_interleave(count, dim=1)
        if self.copies.consecutive:
            copy = torch.arange(count, device=positions.device).repeat(self.hidden_slots)
            positions = count * positions + copy
        return copies.flatten(1, 2), positions

    def attend(
        self,
        layer: LlamaAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: PHDCache | None,
        **kwargs: Any,
    ) -> Tensor:
        kwargs["position_ids"] = self.rows.positions
        return self.rows.attend(layer, query, key, value, cache, **kwargs)

    def last_copies(self, states: Tensor) -> Tensor:
        return states[:, self.copies.hidden :: self.copies.count]

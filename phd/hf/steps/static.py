"""One slot after a static cache, all its copies at once: the same tensors' shapes at every length and nothing
read on the host, for torch.compile and CUDA graphs.

Legend: b samples, K copies, g key/value heads, d head dimension, W window.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from phd.hf.attend import attend, attend_rows
from phd.hf.bands import additive, rule_mask
from phd.hf.cache import PHDCache, PHDStaticLayer
from phd.hf.padding import Padding
from phd.hf.steps import Step
from phd.rules.rule import AttentionRule


class StaticStep(Step):
    """The cache's buffers are read whole: under masks, or by the kernel, which knows the rule.

    Args:
        slot: [1], the new one.
        dtype: of the masks.
        fused: whether ``phd.attention.kernels.triton_rows`` runs in place of them.
    """

    def __init__(
        self,
        rule: AttentionRule,
        cache: PHDCache,
        slot: Tensor,
        padding: Padding,
        dtype: torch.dtype,
        fused: bool,
    ) -> None:
        super().__init__()
        self.rule, self.slot, self.padding, self.fused = rule, slot, padding, fused
        self.end, self.hidden_slots = slot + 1, 1
        if not fused:
            layer = cache.phd_layers[0]
            assert isinstance(layer, PHDStaticLayer)
            self.past_mask = self._past_mask(layer.max_cache_len, dtype)
            self.mask = self._mask(dtype)

    def _past_mask(self, slots: int, dtype: torch.dtype) -> Tensor:
        """Of the originals before the new one, [b|1, 1, K, slots]."""
        buffer = torch.arange(slots, device=self.slot.device)
        seen = (buffer < self.slot)[None]
        if self.padding.counts is not None:
            seen = seen & (buffer >= self.padding.counts[:, None])
        return additive(seen[:, None, None], dtype).expand(-1, -1, self.rule.copies.count, -1)

    def _mask(self, dtype: torch.dtype) -> Tensor:
        """Of the new original, the ring of hidden keys and the new ones, [b|1, 1, K, 1 + W*(K-1)]."""
        slot, ring = self.slot, self.rule.copies.window - 1
        copies = torch.arange(self.rule.copies.count, device=slot.device)
        # what lies in the ring: the last slot before this one that goes there; none yet if negative
        held = torch.arange(ring, device=slot.device)
        held = slot - 1 - (slot - 1 - held) % ring if ring else held
        hidden = torch.cat([held, slot]).repeat_interleave(self.rule.copies.hidden)
        key_copies = torch.cat([copies[:1], copies[1:].repeat(ring + 1)])
        query = torch.zeros_like(copies) + slot, copies
        key = torch.cat([slot, hidden]), key_copies
        return rule_mask(self.rule, query, key, self.padding, dtype)

    def embed(self, embeddings: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        return copies[:, 0], self.padding.positions(self.slot)

    def attend(
        self,
        layer: LlamaAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: PHDCache | None,
        **kwargs: Any,
    ) -> Tensor:
        assert cache is not None
        memory = cache.phd_layers[layer.layer_idx]
        assert isinstance(memory, PHDStaticLayer)
        new, hidden = ((key[:, :, rows], value[:, :, rows]) for rows in (slice(1), slice(1, None)))
        ring = memory.hidden_keys, memory.hidden_values
        past = cache.update(*new, layer.layer_idx)
        if self.fused:
            assert attend_rows is not None
            return attend_rows(  # which puts the hidden keys into the ring
                query,
                *past,
                *hidden,
                *ring,
                self.end,
                self.padding.counts,
                length=0,
                columns=1,
                copies=self.rule.copies.count,
                window=self.rule.copies.window,
                chunk=self.rule.copies.chunk,
                scale=layer.scaling,
            )
        near_key, near_value = (torch.cat(parts, dim=2) for parts in zip(new, ring, hidden, strict=True))
        near = near_key, near_value, self.mask
        out = attend(query, (*past, self.past_mask), near, layer.scaling)
        memory.retain_hidden(*hidden, 1)
        return out

    def last_copies(self, states: Tensor) -> Tensor:
        return states[:, -1:]

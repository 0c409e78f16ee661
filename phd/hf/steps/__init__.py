"""The ways to compute a forward pass, a class each: Llama's own, that on repeated tokens, copies as batch
rows, blocks after a growing cache, one step after a static cache. They differ in where the copies of the
tokens lie and in the attention; all linear layers are single products over the rows.
"""

from abc import ABC, abstractmethod
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from phd.attention import Layout
from phd.hf.cache import PHDCache
from phd.rules.rule import AttentionRule


class Step(ABC):
    """One forward pass of all layers: made before the first layer runs, dropped after the last.

    Legend: b samples, q new slots, n rows of copies, h hidden size, a query heads, g key/value heads, d head
    dimension.
    """

    recomputed: int = 0
    """slots before the new ones whose hidden copies run again"""
    hidden_slots: int = 0
    """the last slots, those that run again included, whose hidden copies run"""

    def __init__(self) -> None:
        self.layouts: dict[AttentionRule, Layout] = {}
        """of ``phd.attention``, where it serves, for each rule"""
        self._moved: dict[torch.device, Step] = {}

    @abstractmethod
    def embed(self, embeddings: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        """Lay out the copies.

        Args:
            embeddings: [b, q, h] of the new slots, after those of the ``recomputed`` ones.
            copies: [b, ``hidden_slots``, K, h], what the copies of the last slots enter the first layer as.

        Returns:
            states and their positions, the new slots' originals first.
        """

    @abstractmethod
    def attend(
        self,
        layer: LlamaAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: PHDCache | None,
        **kwargs: Any,
    ) -> Tensor:
        """Take new keys into the cache, and attend.

        Args:
            query: [b, a, n, d], with rotary angles; key, value: [b, g, n, d].
            kwargs: of transformers' attention interface.

        Returns:
            [b, n, a, d].
        """

    @abstractmethod
    def last_copies(self, states: Tensor) -> Tensor:
        """[b, r, h] of the last copies in ``states``, of the last r slots."""

    def to(self, device: torch.device | str | int, **_: Any) -> "Step":
        """The same on another device, once for all layers there. accelerate asks it of what a layer is called
        with, before a layer on another GPU runs.
        """
        device = torch.device(device)
        if device not in self._moved:
            moved = copy(self)
            for name, value in vars(self).items():
                if hasattr(value, "to"):
                    setattr(moved, name, value.to(device))
            moved.layouts = {rule: layout.to(device) for rule, layout in self.layouts.items()}
            self._moved[device] = moved
        return self._moved[device]

"""K = 1 on full layers: Llama itself, which takes any mask and positions."""

from typing import Any

from torch import Tensor
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, eager_attention_forward

from phd.hf.cache import PHDCache
from phd.hf.configuration import PHDLlamaConfig
from phd.hf.steps import Step


class LlamaStep(Step):
    """Originals alone, by the attention of transformers that the configuration names.

    Args:
        embeddings: [b, q, h] of the new slots.
        positions: [b|1, q].
        cache: as it is before the first layer.
    """

    def __init__(
        self,
        config: PHDLlamaConfig,
        embeddings: Tensor,
        attention_mask: Any,
        positions: Tensor,
        cache: PHDCache | None,
    ) -> None:
        super().__init__()
        self.positions = positions
        self.mask = create_causal_mask(
            config=config,
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=positions,
        )

    def embed(self, embeddings: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        return embeddings, self.positions

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
            key, value = cache.update(key, value, layer.layer_idx)
        name = layer.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        kwargs["dropout"] = layer.attention_dropout if layer.training else 0.0
        return attention(layer, query, key, value, self.mask, scaling=layer.scaling, **kwargs)[0]

    def last_copies(self, states: Tensor) -> Tensor:
        return states

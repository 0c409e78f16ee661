"""The shape of a model, as costs need it.

Conventions of all costs, the same for every variant and for the vanilla baseline:
  - a multiply-add is two FLOPs; only matrix products are counted; backward costs twice forward;
  - activation recomputation is not counted (model FLOPs, not hardware FLOPs);
  - attention counts the (query, key) pairs that may see each other, so causal attention counts half of the
    square (s (s + 1) / 2 pairs), whatever the kernel really multiplies;
  - "per token" is per original token: the K copies are work done for one token, never K tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a GPT under Megatron's names."""

    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    """Key/value heads; as many as ``num_attention_heads`` without grouping."""
    kv_channels: int
    """Size of one head."""
    vocab_size: int
    """Rows of the output layer, padding included."""
    mlp_products: Sequence[int]
    """Multiply-adds of one row in the MLP of each layer: ``dense_products`` or ``expert_products``."""
    attention_output_gate: bool = False
    """The first projection makes a gate for each element of the heads too."""
    lora_rank: int = 0
    """Of adapters beside the projections to query, key and value, and from the heads; 0 for none."""

    @property
    def num_layers(self) -> int:
        return len(self.mlp_products)

    @property
    def query_size(self) -> int:
        """Elements of a row's heads."""
        return self.num_attention_heads * self.kv_channels

    @property
    def projection(self) -> int:
        """Multiply-adds of one row on its way to query, key and value."""
        gate = self.query_size if self.attention_output_gate else 0
        return self.hidden_size * (self.query_size + gate + 2 * self.key_size)

    @property
    def key_size(self) -> int:
        """Elements of a row's keys."""
        return self.num_query_groups * self.kv_channels

    @property
    def adapters(self) -> tuple[int, int]:
        """Multiply-adds of one row in the adapters of a layer, before its attention and behind it: as many as
        they have parameters.
        """
        before = 3 * self.hidden_size + self.query_size + 2 * self.key_size
        return self.lora_rank * before, self.lora_rank * (self.query_size + self.hidden_size)


def dense_products(hidden_size: int, ffn_hidden_size: int, gated_linear_unit: bool) -> int:
    """Multiply-adds of one row in an MLP."""
    return hidden_size * ffn_hidden_size * (3 if gated_linear_unit else 2)


def expert_products(
    *,
    hidden_size: int,
    ffn_hidden_size: int,
    gated_linear_unit: bool,
    num_experts: int,
    topk: int,
    shared_ffn_hidden_size: int = 0,
    shared_gate: bool = False,
    latent_size: int | None = None,
) -> int:
    """Multiply-adds of one row in a mixture of experts: the router, the experts chosen, the shared ones.

    Args:
        ffn_hidden_size: of one expert.
        topk: experts that a row is sent to.
        shared_ffn_hidden_size: of all shared experts together.
        shared_gate: True where a row's share of the shared experts is learned, a number for each.
        latent_size: what rows are projected to on their way to the experts chosen, and back from.
    """
    chosen = topk * dense_products(latent_size or hidden_size, ffn_hidden_size, gated_linear_unit)
    shared = dense_products(hidden_size, shared_ffn_hidden_size, gated_linear_unit)
    return hidden_size * (num_experts + shared_gate + 2 * (latent_size or 0)) + chosen + shared

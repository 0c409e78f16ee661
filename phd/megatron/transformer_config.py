"""Megatron's TransformerConfig with the PHD fields."""

from argparse import Namespace
from dataclasses import dataclass, replace

from megatron.core.transformer import TransformerConfig

from phd.config import PartialTrainingConfig, PHDConfig
from phd.rules.keys import shifted_groups
from phd.rules.pattern import LayerPattern
from phd.rules.rule import AttentionRule
from phd.rules.variant import Variant


@dataclass(kw_only=True)
class PHDTransformerConfig(PHDConfig, PartialTrainingConfig, TransformerConfig):
    """TransformerConfig plus K, W and C, and what trains; filled from the command line by Megatron's
    ``core_transformer_config_from_args(args, config_class=PHDTransformerConfig)``.
    """

    phd_documents: bool = False
    """Packed documents: no token sees another document of its sample. No flag: set by the builder."""

    phd_rotary_positions: bool = False
    """Rotary positions come with the batch. No flag: set by the builder."""

    phd_group_size: int = 0
    """Positions in a group of --s2-groups; 0 without. No flag: set by the builder."""

    phd_seed: int = 0
    """From which adapters draw their first values. No flag: --seed, set by the builder."""

    def __post_init__(self) -> None:
        PHDConfig.__post_init__(self)
        PartialTrainingConfig.__post_init__(self)
        TransformerConfig.__post_init__(self)

    @property
    def training_variant(self) -> Variant:
        """As training computes it: with --s2-groups not the variant that is exported."""
        keys = (rule.keys for rule in self.layers(self.num_layers))
        return replace(self.variant, pattern=LayerPattern.of(tuple(keys)))

    def layers(self, num_layers: int, heads: int | None = None) -> tuple[AttentionRule, ...]:
        """The rule of each layer in training; see PHDConfig."""
        layers = super().layers(num_layers, heads)
        if not self.phd_group_size:
            return layers
        keys = shifted_groups(self.num_query_groups, self.phd_group_size)
        return tuple(replace(rule, keys=keys) for rule in layers)

    def layers_on_rank(self, rank: int) -> tuple[AttentionRule, ...]:
        """The rule of each layer for the key/value heads of a tensor-parallel rank; a pattern counts those of
        the whole layer. Where there are fewer heads than ranks, several ranks have the same one.
        """
        heads, ranks = self.num_query_groups, self.tensor_model_parallel_size
        begin, end = rank * heads // ranks, (rank + 1) * heads // ranks
        return tuple(
            rule.of_heads(begin, max(end, begin + 1)) for rule in self.layers(self.num_layers, heads)
        )

    @property
    def phd_attention(self) -> bool:
        """Whether our core attention runs, rather than Megatron's (which then is the vanilla model's)."""
        return self.phd_group_size > 0 or needs_phd_attention(
            self.variant, self.phd_documents, self.context_parallel_size, self.transformer_impl
        )


def needs_phd_attention(
    variant: Variant, documents: bool, context_parallel_size: int, transformer_impl: str
) -> bool:
    """Whether there are copies, sparse layers, packed documents, or ranks to share a sequence where
    Megatron's own attention cannot (its local one refuses context parallelism).
    """
    return (
        variant.copies.count > 1
        or variant.pattern.sparse
        or documents
        or (context_parallel_size > 1 and transformer_impl == "local")
    )


def prunes_last_layer(args: Namespace) -> bool:
    """Whether the last layer gives the last of several copies alone."""
    return args.phd_copies > 1 and args.phd_prune_last_layer


def key_value_heads(args: Namespace) -> int:
    """Of the whole model."""
    return args.num_query_groups if args.group_query_attention else args.num_attention_heads

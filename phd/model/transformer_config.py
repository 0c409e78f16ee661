"""Megatron's TransformerConfig with the PHD fields."""

from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig

from phd.config import PHDConfig


@dataclass(kw_only=True)
class PHDTransformerConfig(PHDConfig, TransformerConfig):
    """TransformerConfig plus K, W and C; filled from the command line by Megatron's
    ``core_transformer_config_from_args(args, config_class=PHDTransformerConfig)``.
    """

    def __post_init__(self) -> None:
        PHDConfig.__post_init__(self)
        TransformerConfig.__post_init__(self)

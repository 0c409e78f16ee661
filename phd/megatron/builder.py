"""From parsed arguments to a Megatron model config whose builder makes PHD models."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron.core.models.gpt import GPTModel
from megatron.training.argument_utils import core_transformer_config_from_args, gpt_config_from_args
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

from phd.megatron.compat import become
from phd.megatron.copy_embedding import add_copy_embedding
from phd.megatron.documents import documents_masked
from phd.megatron.layer_specs import phd_layer_spec
from phd.megatron.lora import draw_adapters
from phd.megatron.phd_model import PHDModel
from phd.megatron.rotary import positions_given
from phd.megatron.trainable import freeze_others
from phd.megatron.transformer_config import PHDTransformerConfig


@dataclass(kw_only=True)
class PHDModelConfig(GPTModelConfig):
    """GPTModelConfig that names our builder."""

    builder: ClassVar[str] = "phd.megatron.builder.PHDModelBuilder"


class PHDModelBuilder(GPTModelBuilder):
    """GPTModelBuilder; with K > 1, and where rotary positions come with the batch, the model it returns is a
    PHDModel, else Megatron's GPTModel itself. With --train-only what does not train is frozen.
    """

    def build_model(self, *args: Any, **kwargs: Any) -> GPTModel:
        model = super().build_model(*args, **kwargs)
        if model.config.phd_copies > 1 or model.config.phd_rotary_positions:
            become(model, PHDModel)
        if model.pre_process and model.config.phd_copy_embedding != "none":
            add_copy_embedding(model)
        if model.config.lora_rank:
            draw_adapters(model)
        if model.config.train_only is not None:
            freeze_others(model)
        return model


def model_config_from_args(args: Namespace) -> PHDModelConfig:
    """Megatron's arguments plus K, W, C -> model config. Raises ValueError that names the flag."""
    transformer = core_transformer_config_from_args(args, config_class=PHDTransformerConfig)
    transformer.phd_documents = documents_masked(args)
    transformer.phd_rotary_positions = positions_given(args)
    transformer.phd_seed = args.seed
    transformer.phd_group_size = args.seq_length // args.s2_groups if args.s2_groups else 0
    config = gpt_config_from_args(args, config=transformer, model_config_cls=PHDModelConfig)
    config.transformer_layer_spec = phd_layer_spec
    return config

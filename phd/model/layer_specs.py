"""Which module stands in which slot of the transformer layer."""

from dataclasses import replace

from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.training.models.gpt import GPTModelConfig, default_layer_spec

from phd.model.core_attention import PHDCoreAttention
from phd.model.norm import SequenceParallelRMSNorm


def phd_layer_spec(
    config: GPTModelConfig, vp_stage: int | None = None
) -> ModuleSpec | TransformerBlockSubmodules:
    """Megatron's own layer spec for this config, with our module in the slots that need one:
    ``core_attention`` for K > 1, and the norms for sequence parallelism without Transformer Engine.
    """
    spec = default_layer_spec(config, vp_stage)
    transformer = config.transformer

    if transformer.phd_copies > 1:
        attention = spec.submodules.self_attention
        attention = replace(
            attention, submodules=replace(attention.submodules, core_attention=PHDCoreAttention)
        )
        spec = replace(spec, submodules=replace(spec.submodules, self_attention=attention))

    if transformer.sequence_parallel and transformer.transformer_impl == "local":
        if transformer.normalization != "RMSNorm" or transformer.qk_layernorm:
            raise ValueError(
                "--sequence-parallel without Transformer Engine needs --normalization RMSNorm "
                "and no --qk-layernorm"
            )
        norm = SequenceParallelRMSNorm
        spec = replace(
            spec, submodules=replace(spec.submodules, input_layernorm=norm, pre_mlp_layernorm=norm)
        )
        layers = [spec] * get_num_layers_to_build(transformer, vp_stage)
        return TransformerBlockSubmodules(layer_specs=layers, layer_norm=norm)
    return spec

"""Which module stands in which slot of the transformer layer."""

from collections.abc import Callable
from dataclasses import replace

from megatron.core import parallel_state
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import (
    LayerNormImpl,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.training.models.gpt import GPTModelConfig, default_layer_spec

from phd.megatron.core_attention import PHDCoreAttention
from phd.megatron.graphed_layer import GraphedLayer
from phd.megatron.last_layer import last_copy_layer
from phd.megatron.lora import with_adapters
from phd.megatron.norm import SequenceParallelRMSNorm


def phd_layer_spec(
    config: GPTModelConfig, vp_stage: int | None = None
) -> ModuleSpec | TransformerBlockSubmodules:
    """Megatron's own layer spec for this config, with our module in the slots that need one:
    ``core_attention`` where ``PHDTransformerConfig.phd_attention`` says so, and the layer around it where
    CUDA graphs capture layers, the attention's linear layers with --lora-rank, the norms for sequence
    parallelism without Transformer Engine, and the last layer's residual connection; and with torch's norm
    behind the layers where apex's cannot stand.
    """
    spec = default_layer_spec(config, vp_stage)
    transformer = config.transformer
    local = transformer.transformer_impl == "local"
    local_norms = transformer.sequence_parallel and local
    # In the layers Megatron sees to it. Behind them it takes apex's where there is one, which is a LayerNorm.
    torch_norm = transformer.normalization != "LayerNorm" and local
    ours = transformer.phd_attention or transformer.lora_rank
    if not ours and not local_norms and not torch_norm:
        return spec
    if not isinstance(spec, TransformerBlockSubmodules):
        layers = [spec] * get_num_layers_to_build(transformer, vp_stage)
        spec = TransformerBlockSubmodules(layer_specs=layers, layer_norm=LayerNormImpl)
    if torch_norm:
        spec = replace(spec, layer_norm=WrappedTorchNorm)

    if transformer.lora_rank:
        spec = _each_layer(spec, with_adapters)
    if transformer.phd_attention:
        spec = _each_layer(spec, _with_phd_attention)
        if transformer.phd_copies > 1 and transformer.phd_prune_last_layer and _is_last_stage(vp_stage):
            *others, last = spec.layer_specs
            spec = replace(spec, layer_specs=[*others, last_copy_layer(last, transformer.phd_copies)])
        if transformer.cuda_graph_impl in ("local", "transformer_engine"):
            spec = _each_layer(spec, lambda layer: replace(layer, module=GraphedLayer))
    if local_norms:
        spec = replace(_each_layer(spec, _with_parallel_norms), layer_norm=SequenceParallelRMSNorm)
    return spec


def _each_layer(
    block: TransformerBlockSubmodules, change: Callable[[ModuleSpec], ModuleSpec]
) -> TransformerBlockSubmodules:
    return replace(block, layer_specs=[change(layer) for layer in block.layer_specs])


def _with_phd_attention(layer: ModuleSpec) -> ModuleSpec:
    attention = layer.submodules.self_attention
    attention = replace(attention, submodules=replace(attention.submodules, core_attention=PHDCoreAttention))
    return replace(layer, submodules=replace(layer.submodules, self_attention=attention))


def _with_parallel_norms(layer: ModuleSpec) -> ModuleSpec:
    norm = SequenceParallelRMSNorm
    return replace(layer, submodules=replace(layer.submodules, input_layernorm=norm, pre_mlp_layernorm=norm))


def _is_last_stage(vp_stage: int | None) -> bool:
    return parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)

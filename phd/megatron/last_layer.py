"""In training the last layer computes the last copy alone: no other leaves the model.

The other copies still need keys and values there. What they do not need, and what is most of a layer, is
their attention, output projection and MLP; their queries come with the fused projection and are dropped.
Exact: the loss reads the last copy, and so does every gradient.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from phd.megatron.core_attention import LastCopyAttention


def last_copy_layer(spec: ModuleSpec, copies: int) -> ModuleSpec:
    """``spec`` of a layer of PHDCoreAttention, turned into one that takes b*K rows and returns the b of the
    last copy: its attention gives those rows, and the residual is cut down to them. Whole in validation.
    """
    layer = spec.submodules
    attention = layer.self_attention
    attention = replace(attention, submodules=replace(attention.submodules, core_attention=LastCopyAttention))
    bias_dropout_add = layer.self_attn_bda

    def last_copy_bias_dropout_add(training: bool, fused: bool) -> Callable[..., Tensor]:
        add = bias_dropout_add(training, fused)

        def add_last_copy(x_with_bias: Any, residual: Tensor, prob: float) -> Tensor:
            if training:
                # [s, b*K, h] -> [s, b, h]
                residual = residual[:, copies - 1 :: copies]
            return add(x_with_bias, residual, prob)

        return add_last_copy

    return replace(
        spec,
        submodules=replace(layer, self_attention=attention, self_attn_bda=last_copy_bias_dropout_add),
    )

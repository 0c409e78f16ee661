"""A transformer layer of our core attention as CUDA graphs of Megatron's per-layer kinds capture it."""

from typing import Any

import torch
from megatron.core.transformer.enums import CudaGraphModule
from megatron.core.transformer.module import GraphableMegatronModule
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor


class GraphedLayer(TransformerLayer):
    """TransformerLayer of a PHDCoreAttention under --cuda-graph-impl local or transformer_engine.

    Never run on a GPU. Local graphs capture what the layer is called with, so copies need nothing.
    Transformer Engine's are captured with inputs made beforehand: one row a sample, and a mask
    [rows, 1, s, s] that every replay fills with zeros and our attention does not read.
    """

    def get_layer_static_inputs(self, seq_length: int, micro_batch_size: int) -> dict[str, Tensor]:
        """What Transformer Engine captures this layer with: hidden states [s, b*K, h] alone."""
        modules = self.config.cuda_graph_modules
        # a graph of the MLP alone begins where a pruned layer has dropped all copies but the last
        behind_attention = modules and CudaGraphModule.attn not in modules
        pruned = behind_attention and self.self_attention.core_attention.prunes
        rows = micro_batch_size * (1 if pruned else self.config.phd_copies)
        # not TransformerLayer's, which adds the mask
        return GraphableMegatronModule.get_layer_static_inputs(self, seq_length, rows)

    def __call__(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Leaves the mask out, for which Transformer Engine's replay would make zeros."""
        if self.self_attention.core_attention.prunes and not self.training:
            # whole in validation, where Megatron would replay the local graph of training
            return torch.nn.Module.__call__(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

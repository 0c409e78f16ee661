"""The module for the ``core_attention`` slot of Megatron's SelfAttention when K > 1.

Legend: s sequence length, b micro batch size, K copies, n heads and g query groups on this tensor-parallel
rank, d head dimension. Row of the batch axis = sample * K + copy.
"""

from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from phd.attention import naive_attention, phd_attention
from phd.model.transformer_config import PHDTransformerConfig


class PHDCoreAttention(MegatronModule):
    """Attention between the K copies of each sample, by the rule of the PHD paper (section 3, eq. 2).

    Everything around it (projections, rotary embedding, norms, MLP) sees ordinary batch rows. The mask is
    the rule itself: ``attention_mask`` is not read, and what the rule does not cover is refused by
    ``phd.model.support`` before training starts.
    """

    def __init__(
        self,
        config: PHDTransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        if attn_mask_type != AttnMaskType.causal or attention_type != "self":
            raise ValueError(
                f"PHD attention is causal self-attention; layer {layer_number} asks for "
                f"{attention_type} attention with mask type {attn_mask_type}"
            )
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [s, b*K, n, d], key and value [s, b*K, g, d] -> [s, b*K, n*d]."""
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError("PHD attention takes neither an attention bias nor packed sequences")
        config = self.config
        if config.phd_naive:
            context = naive_attention(
                query,
                key,
                value,
                copies=config.phd_copies,
                softmax_scale=self.softmax_scale,
                backend=config.phd_attention_backend,
            )
        else:
            context = phd_attention(
                query,
                key,
                value,
                copies=config.phd_copies,
                window=config.phd_window,
                chunk=config.chunk,
                softmax_scale=self.softmax_scale,
                backend=config.phd_attention_backend,
            )
        # [s, b*K, n, d] -> [s, b*K, n*d]
        return context.flatten(2)

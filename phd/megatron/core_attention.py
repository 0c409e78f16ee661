"""The module for the ``core_attention`` slot of Megatron's SelfAttention: wherever there are copies, sparse
layers, packed documents, or context parallelism without Transformer Engine.

Legend: s positions on this context-parallel rank, b micro batch size, K copies, n heads and g query groups on
this tensor-parallel rank, d head dimension. Row of the batch axis = sample * K + copy.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.distributed import ProcessGroup

from phd.attention import BACKENDS
from phd.attention.context_parallel import ContextParallel
from phd.attention.layout import Layout
from phd.megatron.transformer_config import PHDTransformerConfig
from phd.rules.rule import AttentionRule


@dataclass
class DocumentParams(PackedSeqParams):
    """Packed documents, as Megatron hands them from the model's forward to the core attention of every layer,
    recomputation included; SelfAttention itself ignores them, since the format is not thd.
    """

    layouts: dict[AttentionRule, Layout] = field(default_factory=dict)
    """For each rule of the model's layers, of this rank's heads."""


class PHDCoreAttention(MegatronModule):
    """Attention between the K copies of each sample, by the layer's rule.

    Everything around it (projections, rotary embedding, norms, MLP) sees ordinary batch rows. The mask is
    the rule itself: ``attention_mask`` is not read, and what the rule does not cover is refused by
    ``phd.training.unsupported`` before training starts.
    """

    prunes: ClassVar[bool] = False

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
        tensor_parallel = 0 if pg_collection is None else pg_collection.tp.rank()
        self.rule = config.layers_on_rank(tensor_parallel)[layer_number - 1]
        self.attention = BACKENDS[config.phd_attention_backend]
        group = None if pg_collection is None else pg_collection.cp
        self.parallel = context_parallel(config, group, cp_comm_type)

    @property
    def last_copy_only(self) -> bool:
        """Whether the other copies end here; not in validation, which asks what the original predicts."""
        return self.prunes and self.training

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: DocumentParams | None = None,
    ) -> Tensor:
        """query [s, b*K, n, d], key and value [s, b*K, g, d] -> [s, b*K, n*d]; [s, b, n*d] for the last copy.

        ``packed_seq_params``: None for one document a sample.
        """
        if attention_bias is not None:
            raise ValueError("PHD attention takes no attention bias")
        rule = self.rule if self.training else self.rule.outside_training
        if packed_seq_params is None:
            length = len(query) * self.config.context_parallel_size
            layout = Layout.of(rule, length, parallel=self.parallel, device=query.device)
        else:
            layout = packed_seq_params.layouts[rule]
        context = self.attention(
            query, key, value, layout, scale=self.softmax_scale, last_copy_only=self.last_copy_only
        )
        # [s, b*K, n, d] -> [s, b*K, n*d]
        return context.flatten(2)


class LastCopyAttention(PHDCoreAttention):
    """In training, gives the rows of the last copy alone, [s, b, n*d]."""

    prunes = True


def context_parallel(
    config: PHDTransformerConfig, group: ProcessGroup | None, comm_type: str | list[str] | None
) -> ContextParallel | None:
    """How the ranks of ``group`` share the sequence; None for one rank."""
    if config.context_parallel_size == 1:
        return None
    assert group is not None
    # unsupported.py refuses layers that differ
    return ContextParallel(group, comm_type[0] if isinstance(comm_type, list) else comm_type or "p2p")

"""The module for the ``core_attention`` slot of Megatron's SelfAttention: wherever there are copies, sparse
layers, packed documents, or context parallelism without Transformer Engine.

Legend: s positions on this context-parallel rank, b micro batch size, K copies, n heads and g query groups on
this tensor-parallel rank, d head dimension. Row of the batch axis = sample * K + copy.
"""

from typing import ClassVar

from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.distributed import ProcessGroup

from phd.attention import naive_attention, naive_layout, phd_attention, phd_layout
from phd.attention.context_parallel import ContextParallel
from phd.attention.layout import Layout
from phd.megatron.transformer_config import PHDTransformerConfig


class PHDCoreAttention(MegatronModule):
    """Attention between the K copies of each sample, by the rule of the PHD paper (section 3, eq. 2), on the
    keys that the layer's pattern keeps.

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
        self.pattern = config.patterns(config.num_layers)[layer_number - 1]
        group = None if pg_collection is None else pg_collection.cp
        self.context_parallel = context_parallel(config, group, cp_comm_type)

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
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [s, b*K, n, d], key and value [s, b*K, g, d] -> [s, b*K, n*d]; [s, b, n*d] for the last copy.

        ``packed_seq_params``: a ``phd.megatron.documents.DocumentParams``, or None for one document a sample.
        """
        if attention_bias is not None:
            raise ValueError("PHD attention takes no attention bias")
        config = self.config
        shared = {
            "copies": config.phd_copies,
            "document_starts": getattr(packed_seq_params, "document_starts", None),
            "layout": getattr(packed_seq_params, "layout", None),
            "context_parallel": self.context_parallel,
            "last_copy_only": self.last_copy_only,
            "softmax_scale": self.softmax_scale,
            "backend": config.phd_attention_backend,
        }
        if config.phd_naive:
            context = naive_attention(query, key, value, **shared)
        else:
            context = phd_attention(
                query,
                key,
                value,
                window=config.phd_window,
                chunk=config.chunk,
                pattern=self.pattern,
                **shared,
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


def make_layout(
    config: PHDTransformerConfig, rows: int, document_starts: Tensor, parallel: ContextParallel | None
) -> Layout:
    """The layout of packed documents [b, s] for the attention of ``config``; made once for all layers."""
    device = document_starts.device
    if config.phd_naive:
        return naive_layout(
            rows,
            copies=config.phd_copies,
            document_starts=document_starts,
            context_parallel=parallel,
            device=device,
        )
    return phd_layout(
        rows,
        copies=config.phd_copies,
        window=config.phd_window,
        chunk=config.chunk,
        document_starts=document_starts,
        context_parallel=parallel,
        device=device,
    )

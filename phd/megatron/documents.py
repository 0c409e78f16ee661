"""Packed documents: passes the position where each starts from the sample to the attention of every layer.

Megatron's own way (thd) puts all samples into one row, and its SelfAttention drops the batch axis for it: the
copies are batch rows. So the batch keeps its shape; only our core attention is told where documents start.
RoPE needs no document offsets: scores depend on relative positions only.
"""

from argparse import Namespace

import torch
from megatron.core import parallel_state
from torch import Tensor

from phd.attention.layout import Layout
from phd.megatron.core_attention import DocumentParams, context_parallel
from phd.megatron.transformer_config import PHDTransformerConfig


def documents_masked(args: Namespace) -> bool:
    """Whether no token may see another document of its sample."""
    return args.reset_attention_mask or args.dataloader_inter_document_masking


def on_all_ranks(read: Tensor | None, shape: tuple[int, int], dtype: torch.dtype = torch.int64) -> Tensor:
    """What a sample says of each of its positions (where its document starts, where the rotary embedding
    takes it to be), [b, s] on the device of every rank of the tensor-parallel group.

    Args:
        read: [b, s] of the whole sequence, as the data set gives it; on the group's first rank only.
        shape: (b, s).
        dtype: of ``read``.
    """
    if parallel_state.get_tensor_model_parallel_rank() == 0:
        assert read is not None and read.dtype == dtype
        read = read.cuda(non_blocking=True)
    else:
        read = torch.empty(shape, dtype=dtype, device="cuda")
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        group = parallel_state.get_tensor_model_parallel_group()
        torch.distributed.broadcast(read, parallel_state.get_tensor_model_parallel_src_rank(), group)
    return read


def document_params(starts: Tensor | None, config: PHDTransformerConfig) -> DocumentParams | None:
    """The model's ``packed_seq_params`` for ``starts`` [b, s]; None for None."""
    if starts is None:
        return None
    length = starts.shape[1]
    group = parallel_state.get_context_parallel_group()
    parallel = context_parallel(config, group, config.cp_comm_type)
    on_host = starts.cpu()  # once: each layout reads them there
    layouts = {
        rule: Layout.of(rule, length, document_starts=on_host, parallel=parallel, device=starts.device)
        for each in {*config.layers_on_rank(parallel_state.get_tensor_model_parallel_rank())}
        for rule in {each, each.outside_training}
    }
    return DocumentParams(qkv_format="sbhd", max_seqlen_q=length, max_seqlen_kv=length, layouts=layouts)

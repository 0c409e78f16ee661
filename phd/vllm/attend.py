"""Attention of hidden copies over the originals in vLLM's paged cache, with its log-sum-exp.

Legend: n requests, R columns, J hidden copies, g key/value heads, x query heads for each, d head size.
"""

from typing import Any

import torch
from torch import Tensor

from phd.attention.kernels import attention_forward
from phd.vllm.plan import Plan


def attend_originals(layer: Any, metadata: Any, plan: Plan, query: Tensor) -> tuple[Tensor, Tensor]:
    """Causal, each column over the originals up to its own position.

    Args:
        layer: vLLM's ``Attention`` of the originals, which has written this step's.
        query: [R, g, J * x, d].

    Returns:
        output [R, g, J * x, d] and log-sum-exp [R, g, J * x].
    """
    if query.is_cuda:
        return _flash(layer, metadata, plan, query)
    return _gathered(layer, metadata, plan, query)


def _flash(layer: Any, metadata: Any, plan: Plan, query: Tensor) -> tuple[Tensor, Tensor]:
    """One call for all requests. Never run: docs/gpu.md."""
    from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func

    columns, groups, rows, size = query.shape
    keys, values = layer.kv_cache.transpose(1, 2).split(size, dim=-1)
    out, lse = flash_attn_varlen_func(
        q=query.reshape(columns, groups * rows, size),
        k=keys,
        v=values,
        cu_seqlens_q=torch.tensor(plan.starts, dtype=torch.int32, device=query.device),
        max_seqlen_q=max(plan.counts),
        seqused_k=metadata.seq_lens,
        max_seqlen_k=metadata.max_seq_len,
        softmax_scale=layer.impl.scale,
        causal=True,
        block_table=metadata.block_table,
        return_softmax_lse=True,
        fa_version=layer.impl.vllm_flash_attn_version,
    )
    return out.view(query.shape), lse.T.reshape(columns, groups, rows)


def _gathered(layer: Any, metadata: Any, plan: Plan, query: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    size, starts = query.shape[3], plan.starts
    scale = layer.impl.scale
    for request, (count, end) in enumerate(zip(plan.counts, plan.ends, strict=True)):
        if not count:
            continue
        columns = slice(starts[request], starts[request + 1])
        keys, values = read_cache(layer.kv_cache, metadata.block_table[request], end, size)
        rows = query[columns].transpose(0, 1).flatten(1, 2)  # [g, count * J * x, d]
        mask = None
        if count > 1:
            later = torch.arange(end) > plan.positions[columns, None]
            mask = torch.zeros(later.shape, dtype=query.dtype).masked_fill_(later, float("-inf"))
            mask = mask.repeat_interleave(query.shape[2], dim=0)[None, None]
        one, one_lse = attention_forward(rows[None], keys[None], values[None], scale, mask, causal=False)
        out[columns] = one[0].unflatten(1, (count, -1)).transpose(0, 1)
        lse[columns] = one_lse[0].unflatten(1, (count, -1)).transpose(0, 1)
    return out, lse


def read_cache(cache: Tensor, blocks: Tensor, length: int, size: int) -> tuple[Tensor, Tensor]:
    """The first ``length`` keys and values, [g, length, d] each, of a request with these blocks of
    ``cache`` [blocks, g, block, 2 d]. vLLM's kernels for CPUs write a block's keys as [d, block].
    """
    block = cache.shape[2]
    used = cache[blocks[: -(-length // block)].long()]  # a copy
    used = used.view(len(used), cache.shape[1], 2, block * size)
    keys = used[:, :, 0].unflatten(2, (size, block)).permute(1, 0, 3, 2).contiguous().flatten(1, 2)
    values = used[:, :, 1].unflatten(2, (block, size)).transpose(0, 1).flatten(1, 2)
    return keys[:, :length], values[:, :length]


def check_cpu_kernels(dtype: torch.dtype, block: int, size: int) -> None:
    """Write a few keys as vLLM does on this CPU, and read them.

    Raises:
        ValueError: its kernels here keep them in another order than ``read_cache`` knows.
    """
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    groups, length = 2, block + 3
    isa = _get_attn_isa(dtype, block, size, "auto")
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        torch.randn(length, groups, size, generator=generator).to(dtype) for _ in ("keys", "values")
    )
    cache = torch.zeros(3, groups, block, 2 * size, dtype=dtype)
    blocks = torch.tensor([2, 1])
    position = torch.arange(length)
    slots = blocks[position // block] * block + position % block
    halves = cache.view(3, groups, 2 * block, size).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(
        keys, values, *halves, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
    )
    found = read_cache(cache, blocks, length, size)
    if not all(torch.equal(a, b.transpose(0, 1)) for a, b in zip(found, (keys, values), strict=True)):
        raise ValueError(
            f"heads of {size} in {dtype} on this CPU: vLLM's kernels ({isa}) keep keys in an order that phd "
            "does not know: serve with `phd serve --engine transformers`"
        )

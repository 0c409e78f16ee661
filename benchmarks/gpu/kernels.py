"""Other people's attention: causal attention by every kernel at hand, and torch's with a dense mask.

Every function takes query [s, b, h, d], key and value [s, b, g, d], as Megatron has them, and returns
[s, b, h, d].

Legend: s positions, b rows (samples * K), K copies, h query heads, g key/value heads, d head dimension.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from phd.attention.reference import dense_mask
from phd.rules.rule import AttentionRule

type Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def vanilla_kernels(dim: int, inputs: Sequence[Tensor], device: torch.device) -> dict[str, Kernel]:
    """Those that are installed; they may still refuse these inputs."""
    heads, groups = inputs[0].shape[2], inputs[1].shape[2]
    kernels: dict[str, Kernel] = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
        kernels[name] = torch_kernel(backend, grouped=True)
        kernels[f"{name}, heads repeated"] = torch_kernel(backend, grouped=False)
    if device.type == "cuda" and find_spec("transformer_engine") is not None:
        kernels["Transformer Engine"] = transformer_engine_kernel(heads, groups, dim)
    if device.type == "cuda" and find_spec("flash_attn_interface") is not None:
        kernels["FlashAttention 3"] = flash_attention_3
    return kernels


def torch_kernel(backend: SDPBackend, *, grouped: bool) -> Kernel:
    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not grouped:
            key, value = (x.repeat_interleave(query.shape[2] // key.shape[2], dim=2) for x in (key, value))
        # [s, b, h, d] -> [b, h, s, d]
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return out.permute(2, 0, 1, 3)

    return attention


def transformer_engine_kernel(heads: int, groups: int, dim: int) -> Kernel:
    """It chooses among cuDNN and the FlashAttention that is installed."""
    from transformer_engine.pytorch import DotProductAttention

    module: Any = DotProductAttention(
        heads, dim, num_gqa_groups=groups, attention_dropout=0.0, qkv_format="sbhd", attn_mask_type="causal"
    )
    # [s, b, h*d] -> [s, b, h, d]
    return lambda query, key, value: module(query, key, value).unflatten(2, (heads, dim))


def flash_attention_3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_func

    # [s, b, h, d] -> [b, s, h, d]
    out = flash_attn_func(*(x.transpose(0, 1) for x in (query, key, value)), causal=True)
    # its first releases return the log-sum-exp too
    return (out[0] if isinstance(out, tuple) else out).transpose(0, 1)


def dense_mask_attention(rule: AttentionRule, length: int, device: torch.device) -> Kernel:
    """A rule as a (K s)^2 mask for scaled_dot_product_attention, which is built in the first call."""
    copies = rule.copies.count
    mask: Tensor | None = None

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        nonlocal mask
        if mask is None:
            visible = dense_mask(rule, length, device=device).reshape(length * copies, -1)
            mask = torch.zeros(visible.shape, dtype=query.dtype, device=device)
            mask.masked_fill_(~visible, -torch.inf)
        # the kernel that takes a mask has no grouped heads
        key, value = (x.repeat_interleave(query.shape[2] // key.shape[2], dim=2) for x in (key, value))
        # [s, K, h, d] -> [1, h, s*K, d]
        query, key, value = (x.flatten(0, 1).transpose(0, 1)[None] for x in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out[0].transpose(0, 1).unflatten(0, (length, copies))

    return attention

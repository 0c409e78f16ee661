"""torch's flash attention for the CPU, fp32, fp64 and bf16: what scaled_dot_product_attention calls."""

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None, causal: bool = True
) -> tuple[Tensor, Tensor]:
    return _forward(query, key, value, 0.0, causal and mask is None, attn_mask=mask, scale=scale)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    mask: Tensor | None,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    causal = causal and mask is None
    return _backward(grad_out, query, key, value, out, lse, 0.0, causal, attn_mask=mask, scale=scale)

"""torch's flash attention for the CPU: fp32, fp64, bf16; the operators behind
scaled_dot_product_attention.
"""

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, tuple]:
    out, lse = _forward(query, key, value, 0.0, True, scale=scale)
    return out, lse, ()


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    state: tuple,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad_out, query, key, value, out, lse, 0.0, True, scale=scale)

"""torch's FlashAttention 2 for CUDA: fp16 and bf16. Not yet run on a GPU."""

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward.default


def forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, tuple]:
    out, lse, *state, _ = _forward(query, key, value, 0.0, True, scale=scale)
    return out, lse, tuple(state)


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
    cum_seq_q, cum_seq_k, max_q, max_k, philox_seed, philox_offset = state
    return _backward(
        grad_out, query, key, value, out, lse, cum_seq_q, cum_seq_k, max_q, max_k, 0.0, True,
        philox_seed, philox_offset, scale=scale,
    )  # fmt: skip

"""torch's FlashAttention 2 for CUDA, fp16 and bf16. It takes no mask: that part is plain matrix products.

The causal call has not been run on a GPU yet, and the masked one has not been tuned there.

Legend: n batch, h query heads, g key/value heads, r = h/g, s query rows, t key rows, d head dimension.
"""

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward.default


def forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None, causal: bool = True
) -> tuple[Tensor, Tensor]:
    half = query.dtype in (torch.float16, torch.bfloat16)
    if mask is None and not causal and not half:
        mask = query.new_zeros((1, 1, 1, 1))
    if mask is not None:
        return masked_forward(query, key, value, scale, mask)
    if not half:
        raise ValueError(
            f"backend 'flash' on CUDA takes fp16 and bf16, got {query.dtype}: use bf16, or 'reference'"
        )
    out, lse, *_ = _forward(query, key, value, 0.0, causal, scale=scale)
    return out, lse


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
    if mask is not None:
        return masked_backward(grad_out, query, key, value, out, lse, scale, mask)
    lengths = None, None, query.shape[2], key.shape[2]
    # read only with dropout
    philox = torch.empty(2, dtype=torch.uint64, device=query.device)
    return _backward(
        grad_out, query, key, value, out, lse.contiguous(), *lengths, 0.0, causal, *philox, scale=scale
    )


def masked_forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor
) -> tuple[Tensor, Tensor]:
    scores = _scores(query, key, scale, mask)
    lse = scores.logsumexp(-1, keepdim=True)
    # [n, g, r, s, t] x [n, g, 1, t, d] -> [n, g, r, s, d]
    out = torch.matmul((scores - lse).exp(), value.unsqueeze(2))
    return out.flatten(1, 2), lse.squeeze(-1).flatten(1, 2)


def masked_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    # [n, h, s, d] -> [n, g, r, s, d]
    grad_out, out, rows = (_group(x, key) for x in (grad_out, out, query))
    weights = (_scores(query, key, scale, mask) - _group(lse.unsqueeze(-1), key)).exp()
    grad_weights = torch.matmul(grad_out, value.unsqueeze(2).mT)
    grad_scores = weights * (grad_weights - (grad_out * out).sum(-1, keepdim=True)) * scale
    grad_query = torch.matmul(grad_scores, key.unsqueeze(2)).flatten(1, 2)
    grad_key = torch.matmul(grad_scores.mT, rows).sum(2)
    grad_value = torch.matmul(weights.mT, grad_out).sum(2)
    return grad_query, grad_key, grad_value


def _group(rows: Tensor, key: Tensor) -> Tensor:
    """[n, h, ...] -> [n, g, r, ...]."""
    return rows.unflatten(1, (key.shape[1], -1))


def _scores(query: Tensor, key: Tensor, scale: float, mask: Tensor) -> Tensor:
    """[n, g, r, s, t]."""
    return torch.matmul(_group(query, key), key.unsqueeze(2).mT) * scale + mask.unsqueeze(2)

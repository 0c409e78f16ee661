"""Flash attention on CUDA, fp16 and bf16: cuDNN's from compute capability 9.0 (Hopper) on, for whole blocks
of rows that cuDNN takes by torch's own checks, else FlashAttention 2. Neither takes a mask: that part is
plain matrix products.

Both read grouped keys and values where they lie, and the backward of both takes the output and log-sum-exp
of a softmax over more keys, as torch's own ring attention (torch.distributed.tensor.experimental) calls them.

The unmasked calls have not been run on a GPU yet, and the masked one has not been tuned there.

Legend: n batch, h query heads, g key/value heads, r = h/g, s query rows, t key rows, d head dimension.
"""

from itertools import accumulate

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

from phd.attention.memo import made_once

HALF = (torch.float16, torch.bfloat16)
CUDNN_BLOCK = 128
"""cuDNN compiles a plan for each shape: it is taken only for lengths divisible by this, of which a training
has few, while packed documents come in every length.
"""

_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
_packed_forward = torch.ops.aten._flash_attention_forward.default
_packed_backward = torch.ops.aten._flash_attention_backward.default
_cudnn_forward = torch.ops.aten._scaled_dot_product_cudnn_attention.default
_cudnn_backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward.default


def forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None, causal: bool = True
) -> tuple[Tensor, Tensor]:
    if mask is None and not causal and query.dtype not in HALF:
        mask = query.new_zeros((1, 1, 1, 1))
    if mask is not None:
        return masked_forward(query, key, value, scale, mask)
    _refuse_full_precision(query)
    if kernel_of(query, key, value, causal) == "flash":
        out, lse, *_ = _flash_forward(query, key, value, 0.0, causal, scale=scale)
        return out, lse
    out, lse, *_ = _cudnn_forward(query, key, value, None, True, 0.0, causal, scale=scale)
    return out, lse.squeeze(-1)


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
    lse = lse.contiguous()
    if kernel_of(query, key, value, causal) == "flash":
        # read only with dropout
        philox = torch.empty(2, dtype=torch.uint64, device=query.device)
        return _flash_backward(
            grad_out, query, key, value, out, lse, *lengths, 0.0, causal, *philox, scale=scale
        )
    philox = torch.empty(2, dtype=torch.int64, device=query.device)
    return _cudnn_backward(
        grad_out, query, key, value, out, lse.unsqueeze(-1), *philox, None, *lengths, 0.0, causal, scale=scale
    )


def packed_forward(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """FlashAttention 2 alone: cuDNN would plan anew for every batch of documents."""
    _refuse_full_precision(query)
    ends, longest = _ends(lengths, query.device), max(lengths)
    out, lse, *_ = _packed_forward(
        query, key, value, ends, ends, longest, longest, 0.0, True, False, scale=scale
    )
    return out, lse.T


def packed_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    lengths: tuple[int, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    ends, longest = _ends(lengths, query.device), max(lengths)
    # read only with dropout
    philox = torch.empty(2, dtype=torch.uint64, device=query.device)
    return _packed_backward(
        grad_out, query, key, value, out, lse.T.contiguous(), ends, ends, longest, longest, 0.0, True,
        *philox, scale=scale,
    )  # fmt: skip


@made_once(maxsize=64)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """0 and where each sequence ends: the same for all layers of a batch."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _refuse_full_precision(query: Tensor) -> None:
    if query.dtype not in HALF:
        raise ValueError(
            f"backend 'flash' on CUDA takes fp16 and bf16, got {query.dtype}: use bf16, or 'reference'"
        )


def kernel_of(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> str:
    """What attention without a mask runs on, "flash" or "cudnn"; arguments as of ``forward``."""
    rows, keys = query.shape[2], key.shape[2]
    if rows != keys or rows % CUDNN_BLOCK:
        return "flash"
    # fake tensors may be on a device that is not there, and has no capability
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(query.device) < (9, 0):
        return "flash"
    takes = can_use_cudnn_attention(SDPAParams(query, key, value, None, 0.0, causal, True))
    return "cudnn" if takes else "flash"


def masked_forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor
) -> tuple[Tensor, Tensor]:
    scores = _scores(query, key, scale, mask)
    lse = scores.logsumexp(-1, keepdim=True)
    # [n, g, r*s, t] x [n, g, t, d] -> [n, g, r*s, d]
    out = (scores - lse).exp().to(value.dtype) @ value
    return _ungroup(out, query), _ungroup(lse, query).squeeze(-1)


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
    delta = _group((_wide(grad_out) * out).sum(-1, keepdim=True), key)
    grad_out, rows = _group(grad_out, key), _group(query, key)
    weights = (_scores(query, key, scale, mask) - _group(lse.unsqueeze(-1), key)).exp()
    grad_scores = (weights * (grad_out @ value.mT - delta) * scale).to(query.dtype)
    grad_query = _ungroup(grad_scores @ key, query)
    return grad_query, grad_scores.mT @ rows, weights.to(grad_out.dtype).mT @ grad_out


def _group(rows: Tensor, key: Tensor) -> Tensor:
    """[n, h, s, d] -> [n, g, r*s, d]: the rows that share keys, so that no key is copied."""
    return rows.unflatten(1, (key.shape[1], -1)).flatten(2, 3)


def _ungroup(rows: Tensor, query: Tensor) -> Tensor:
    """[n, g, r*s, d] -> [n, h, s, d]."""
    return rows.unflatten(2, (-1, query.shape[2])).flatten(1, 2)


def _wide(x: Tensor) -> Tensor:
    """In fp32, or as it is where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scores(query: Tensor, key: Tensor, scale: float, mask: Tensor) -> Tensor:
    """[n, g, r*s, t] in fp32 or wider; the mask is [n, 1, s, t]."""
    scores = _wide(_group(query, key) @ key.mT) * scale
    # [n, g, r*s, t] -> [n, g, r, s, t] and back
    return (scores.unflatten(2, (-1, query.shape[2])) + mask.unsqueeze(2)).flatten(2, 3)

"""Causal flash attention with its log-sum-exp, one signature for every device."""

from types import ModuleType

from torch import Tensor

from phd.attention.kernels import cpu, cuda


def _kernel(query: Tensor) -> ModuleType:
    return cuda if query.is_cuda else cpu


def causal_forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, tuple]:
    """Causal attention.

    Args:
        query, key, value: [b, heads, s, d] each, any strides with d contiguous.

    Returns:
        output [b, heads, s, d] (contiguous as [b, s, heads, d]), log-sum-exp [b, heads, s] (fp32, or fp64 for
        fp64), and what ``causal_backward`` needs besides.
    """
    return _kernel(query).forward(query, key, value, scale)


def causal_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    state: tuple,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of ``causal_forward``.

    ``out`` and ``lse`` may be those of a softmax over more keys than the causal ones: the result is then the
    share of these keys (as in ring attention).
    """
    return _kernel(query).backward(grad_out, query, key, value, out, lse, state, scale)

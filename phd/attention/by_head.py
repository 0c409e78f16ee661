"""Attention over the originals where key/value heads differ in what they keep: the heads of each rule as a
layer of their own, one rule after another. Heads side by side are views; results are written into one tensor.

Legend: s rows on this rank, b samples, m query copies, h query heads, g key/value heads, n parts of a
gradient, d head dimension.
"""

import torch
from torch import Tensor

from phd.attention.full import FullOriginals
from phd.attention.heads import places
from phd.attention.layout import Layout
from phd.attention.sparse import SparseOriginals

Places = slice | Tensor


class OriginalsByHead:
    """Forward and backward over one layer's query [s, b, m, h, d], original key and value [s, b, g, d]."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> None:
        self.query, self.key = query, key
        each = query.shape[3] // key.shape[2]
        # (how many key/value heads, where they are, where their query heads are, attention of them)
        self.groups: list[tuple[int, Places, Places, FullOriginals | SparseOriginals]] = []
        for numbers, of_heads in layout.by_head():
            heads, queries = (places(numbers, query.device, count) for count in (1, each))
            executor = SparseOriginals if of_heads.rule.sparse else FullOriginals
            tensors = query[:, :, :, queries], key[:, :, heads], value[:, :, heads]
            self.groups.append((len(numbers), heads, queries, executor(*tensors, of_heads, scale)))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output [s, b, m, h, d] in fp32 at least, and log-sum-exp [s, b, m, h]."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        out = torch.empty_like(self.query, dtype=dtype)
        lse = self.query.new_empty(self.query.shape[:-1], dtype=dtype)
        for _, _, queries, originals in self.groups:
            some, some_lse = originals.forward()
            out[:, :, :, queries], lse[:, :, :, queries] = some.to(dtype), some_lse
        return out, lse

    def backward(self, grad_out: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the query and of key and value, [2, s, b, g, d]; ``out`` and ``lse`` may be those of a
        softmax over more keys.
        """
        grad_query = torch.empty_like(self.query)
        grads = self.key.new_empty((2, *self.key.shape))
        for count, heads, queries, originals in self.groups:
            of_queries = (x[:, :, :, queries] for x in (grad_out, out, lse))
            some, parts = originals.backward(*of_queries)
            grad_query[:, :, :, queries] = some.to(grad_query.dtype)
            for grad, part in zip(grads, parts, strict=True):
                # [s, b, n*g, d] -> [s, b, n, g, d]
                grad[:, :, heads] = part.unflatten(2, (-1, count)).sum(2).to(grad.dtype)
        return grad_query, grads

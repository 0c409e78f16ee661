"""Attention over the originals where key/value heads differ in what they keep: slices of heads, one after
another, each as a layer of its own. The slices are views; their results are written into one tensor.

Legend: s rows on this rank, b samples, m query copies, h query heads, g key/value heads, n parts of a
gradient, d head dimension.
"""

import torch
from torch import Tensor

from phd.attention.full import FullOriginals
from phd.attention.layout import Layout
from phd.attention.sparse import SparseOriginals


class OriginalsByHead:
    """Forward and backward over one layer's query [s, b, m, h, d], original key and value [s, b, g, d]."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> None:
        self.query, self.key = query, key
        each = query.shape[3] // key.shape[2]
        # (key/value heads, their query heads, attention of them)
        self.slices: list[tuple[slice, slice, FullOriginals | SparseOriginals]] = []
        for heads, of_heads in layout.by_head():
            queries = slice(heads.start * each, heads.stop * each)
            executor = SparseOriginals if of_heads.rule.sparse else FullOriginals
            tensors = query[:, :, :, queries], key[:, :, heads], value[:, :, heads]
            self.slices.append((heads, queries, executor(*tensors, of_heads, scale)))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output [s, b, m, h, d] in fp32 at least, and log-sum-exp [s, b, m, h]."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        out = torch.empty_like(self.query, dtype=dtype)
        lse = self.query.new_empty(self.query.shape[:-1], dtype=dtype)
        for _, queries, originals in self.slices:
            out[:, :, :, queries], lse[:, :, :, queries] = originals.forward()
        return out, lse

    def backward(self, grad_out: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the query and of key and value, [2, s, b, g, d]; ``out`` and ``lse`` may be those of a
        softmax over more keys.
        """
        grad_query = torch.empty_like(self.query)
        grads = self.key.new_empty((2, *self.key.shape))
        for heads, queries, originals in self.slices:
            of_queries = (x[:, :, :, queries] for x in (grad_out, out, lse))
            grad_query[:, :, :, queries], parts = originals.backward(*of_queries)
            for grad, part in zip(grads, parts, strict=True):
                # [s, b, n*g, d] -> [s, b, n, g, d]
                grad[:, :, heads] = part.unflatten(2, (-1, heads.stop - heads.start)).sum(2)
        return grad_query, grads

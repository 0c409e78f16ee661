"""Causal attention over the originals of all earlier positions: one flash call, more of them for packed
documents and under context parallelism.

Packed documents are causal sequences of their own, laid end to end for one call. Under context parallelism
the other ranks' originals that a slice sees are one more call without a mask for each of their slices, merged
by log-sum-exp (``layout.py``).

Legend: s rows on this rank, t key rows, b samples, m query copies, h query heads, g key/value heads,
r = h/g, d head dimension, n = b*s.
"""

import torch
from torch import Tensor

from phd.attention.kernels import (
    attention_backward,
    attention_forward,
    merge,
    packed_backward,
    packed_forward,
)
from phd.attention.layout import Layout
from phd.attention.slices import Segment


class FullOriginals:
    """Forward and backward over one layer's query [s, b, m, h, d], original key and value [s, b, g, d]."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> None:
        self.query, self.key, self.value = query, key, value
        self.layout, self.scale = layout, scale
        self.parallel = layout.parallel if layout.size > 1 else None

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output [s, b, m, h, d], in fp32 at least where many parts are added, and log-sum-exp
        [s, b, m, h].
        """
        if self.parallel is None:
            return self._documents()
        # begins before the rank's own part is computed
        others = self.parallel.blocks_of_others(torch.stack((self.key, self.value)))
        out, lse = self._documents()
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        self._add_earlier(out, lse, self.layout.segments, self.key, self.value)
        for rank, (key, value) in others:
            self._add_earlier(out, lse, self.layout.segments_of(rank), key, value)
        return out, lse

    def backward(self, grad_out: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Gradients of the query, and of key and value [s, b, n*g, d], whose n parts are still to be
        summed: the kernels return one for each query copy, and a caller that has a buffer for the sum saves
        a copy. ``out`` and ``lse`` may be those of a softmax over more keys.
        """
        given = grad_out, out, lse
        grad_query, *grads = self._documents_backward(*given)
        if self.parallel is not None:
            groups = self.key.shape[2]
            grad_originals = torch.stack([_sum_parts(grad, groups) for grad in grads])

            def share(segments: tuple[Segment, ...], keys: Tensor) -> Tensor:
                """Add to grad_query; return the gradients of these keys and values."""
                return self._earlier_backward(grad_query, segments, *given, keys)

            originals = torch.stack((self.key, self.value))
            grad_originals += share(self.layout.segments, originals)
            grad_originals += self.parallel.sum_from_others(
                originals, lambda rank, keys: share(self.layout.segments_of(rank), keys)
            )
            return grad_query, grad_originals.unbind()
        return grad_query, tuple(grads)

    def _documents(self) -> tuple[Tensor, Tensor]:
        """Each document's part of each segment, with causal attention within the part."""
        if len(self.layout.pieces) == 1:
            return _causal_or_full(self.query, self.key, self.value, self.scale, causal=True)
        key, value = _pack_keys(self.key), _pack_keys(self.value)
        out, lse = packed_forward(self._pack(self.query), key, value, self._lengths(), self.scale)
        return self._unpack(out), self._unpack(lse.unsqueeze(-1)).squeeze(-1)

    def _documents_backward(
        self, grad_out: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.query, self.key, self.value
        if len(self.layout.pieces) == 1:
            return _causal_or_full_backward(grad_out, query, key, value, out, lse, self.scale, causal=True)
        grad_query, grad_key, grad_value = packed_backward(
            self._pack(grad_out), self._pack(query), _pack_keys(key), _pack_keys(value), self._pack(out),
            self._pack(lse.unsqueeze(-1)).squeeze(-1), self._lengths(), self.scale,
        )  # fmt: skip
        # [n, g, d] -> [s, b, g, d]
        grads = (x.unflatten(0, (-1, key.shape[0])).transpose(0, 1) for x in (grad_key, grad_value))
        return self._unpack(grad_query), *grads

    def _lengths(self) -> tuple[int, ...]:
        """Rows of each piece, sample after sample."""
        lengths = tuple(piece.rows.stop - piece.rows.start for piece in self.layout.pieces)
        # pieces of documents name their samples, in order; others are of all samples
        return lengths if self.layout.document_starts is not None else lengths * self.query.shape[1]

    def _pack(self, rows: Tensor) -> Tensor:
        """[s, b, m, h, x] -> [n, g*m*r, x]: the copies of a group's heads stand beside each other."""
        # [s, b, m, g, r, x] -> [b, s, g, m, r, x]
        rows = rows.unflatten(3, (self.key.shape[2], -1)).permute(1, 0, 3, 2, 4, 5)
        return rows.flatten(2, 4).flatten(0, 1)

    def _unpack(self, rows: Tensor) -> Tensor:
        """Inverse of ``_pack``."""
        length, samples, copies = self.query.shape[:3]
        rows = rows.unflatten(1, (self.key.shape[2], copies, -1)).unflatten(0, (samples, length))
        return rows.permute(1, 0, 3, 2, 4, 5).flatten(3, 4)

    def _add_earlier(
        self, out: Tensor, lse: Tensor, segments: tuple[Segment, ...], key: Tensor, value: Tensor
    ) -> None:
        """Add the originals of a rank's ``segments`` to the pieces that see them."""
        for piece, rows in self.layout.earlier(segments):
            where, keys = (piece.rows, piece.samples), (rows, piece.samples)
            more = _causal_or_full(self.query[where], key[keys], value[keys], self.scale, causal=False)
            merge(out[where], lse[where], *more)

    def _earlier_backward(
        self,
        grad_query: Tensor,
        segments: tuple[Segment, ...],
        grad_out: Tensor,
        out: Tensor,
        lse: Tensor,
        originals: Tensor,
    ) -> Tensor:
        grads = torch.zeros_like(originals)
        for piece, rows in self.layout.earlier(segments):
            where, keys = (piece.rows, piece.samples), (rows, piece.samples)
            grad_rows, grad_key, grad_value = _causal_or_full_backward(
                grad_out[where], self.query[where], originals[0][keys], originals[1][keys], out[where],
                lse[where], self.scale, causal=False,
            )  # fmt: skip
            grad_query[where] += grad_rows
            grads[0][keys] += _sum_parts(grad_key, originals.shape[3])
            grads[1][keys] += _sum_parts(grad_value, originals.shape[3])
        return grads


def _causal_or_full(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """query [s, b, m, h, d] over key and value [t, b, g, d] -> out [s, b, m, h, d], lse [s, b, m, h]."""
    samples, copies = query.shape[1:3]
    out, lse = attention_forward(
        _fold(query), _fold_keys(key, copies), _fold_keys(value, copies), scale, causal=causal
    )
    return _unfold(out, samples, copies), _unfold(lse.unsqueeze(-1), samples, copies).squeeze(-1)


def _causal_or_full_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query [s, b, m, h, d], and of key and value as each copy reads them [t, b, m*g, d]."""
    samples, copies = query.shape[1:3]
    folded = attention_backward(
        _fold(grad_out),
        _fold(query),
        _fold_keys(key, copies),
        _fold_keys(value, copies),
        _fold(out),
        _fold(lse.unsqueeze(-1)).squeeze(-1),
        scale,
        causal=causal,
    )
    grad_query, grad_key, grad_value = (_unfold(x, samples, copies) for x in folded)
    return grad_query, grad_key.flatten(2, 3), grad_value.flatten(2, 3)


def _sum_parts(grad: Tensor, groups: int) -> Tensor:
    """[t, b, n*g, d] -> [t, b, g, d]."""
    return grad.unflatten(2, (-1, groups)).sum(2)


def _pack_keys(rows: Tensor) -> Tensor:
    """[s, b, g, d] -> [n, g, d]."""
    return rows.transpose(0, 1).flatten(0, 1)


def _fold(rows: Tensor) -> Tensor:
    """[s, b, m, h, x] -> [1, b*m*h, s, x]: samples and copies become heads."""
    return rows.flatten(1, 3).transpose(0, 1).unsqueeze(0)


def _fold_keys(rows: Tensor, copies: int) -> Tensor:
    """[t, b, g, d] -> [1, b*m*g, t, d], the same for every copy."""
    return _fold(rows.unsqueeze(2).expand(-1, -1, copies, -1, -1))


def _unfold(heads: Tensor, samples: int, copies: int) -> Tensor:
    """Inverse of ``_fold``: [1, b*m*h, s, x] -> [s, b, m, h, x]."""
    return heads.squeeze(0).transpose(0, 1).unflatten(1, (samples, copies, -1))

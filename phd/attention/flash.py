"""The fast path: attention over the originals plus a small banded product, merged by log-sum-exp.

The K copies of a query are more query heads over the same keys, those of the original tokens: on a full layer
one ordinary causal flash call does the global part of all of them, with no mask (``full.py``), on a sparse
layer some calls over the kept keys (``sparse.py``), and where heads differ so for each slice of them
(``by_head.py``). Hidden queries then add the few hidden keys of their band
(``band.py``). In backward the flash kernel is called with the *merged* output and log-sum-exp: its result is
then the originals' exact share, and the band takes the rest.

Legend: s rows on this rank, b samples, K copies, m query copies (all, or the last alone), h query heads,
g key/value heads, d head dimension.
"""

import importlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from phd.attention.band import Band
from phd.attention.by_head import OriginalsByHead
from phd.attention.full import FullOriginals
from phd.attention.layout import Layout
from phd.attention.sparse import SparseOriginals


@torch.compiler.disable  # kernels that write into views of a view: torch.compile traces no such graph
def flash_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """PHD attention with memory O(s).

    Args:
        query: [s, b, m, h, d]; m is K, or 1 for the last copy alone.
        key, value: [s, b, K, g, d].
        layout: of these rows.

    Returns:
        [s, b, m, h, d].
    """
    return _FlashAttention.apply(query, key, value, layout, scale)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        scale: float,
    ) -> Tensor:
        # the kernels need the elements of a head to be contiguous
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        out, lse, halo = _Attention(query, key, value, layout, scale).forward()
        ctx.attention = layout, scale
        ctx.save_for_backward(query, key, value, out, lse, halo)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, halo = ctx.saved_tensors
        attention = _Attention(query, key, value, *ctx.attention)
        return *attention.backward(grad_out.contiguous(), out, lse, halo), None, None


class _Attention:
    """Forward and backward over one layer's query [s, b, m, h, d], key and value [s, b, K, g, d]."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> None:
        self.query, self.key, self.value = query, key, value
        self.layout, self.scale = layout, scale
        executor: Any = SparseOriginals if layout.rule.sparse else FullOriginals
        if layout.rule.keys.heads is not None:
            executor = OriginalsByHead
        self.originals = executor(query, key[:, :, 0], value[:, :, 0], layout, scale)
        self.hidden = key.shape[2] - 1
        # hidden copies among the queries, the last of them
        self.hidden_queries = slice(1 if query.shape[2] == key.shape[2] else 0, None)

    def forward(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output [s, b, m, h, d], log-sum-exp [s, b, m, h], halo [2, 2, W-1, b, K-1, g, d] or None."""
        out, lse = self.originals.forward()
        halo = None
        if self.hidden:
            halo = self._halo()
            for segment, (rows, samples), band in self._bands():
                where = rows, samples, self.hidden_queries
                band.merge(
                    out[where], lse[where], self.query[where], *self._hidden_keys(rows, samples),
                    _of_segment(halo, segment, samples),
                )  # fmt: skip
        return out.to(self.query.dtype), lse, halo

    def backward(
        self, grad_out: Tensor, out: Tensor, lse: Tensor, halo: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, from what ``forward`` returned."""
        grad_query, grad_originals = self.originals.backward(grad_out, out, lse)
        # [s, b, n*g, d] -> [s, b, n, g, d]
        parts = [grad.unflatten(2, (-1, self.key.shape[3])) for grad in grad_originals]
        if not self.hidden:  # with one copy there is one part: nothing to add or to concatenate
            grad_key, grad_value = (part.to(self.key.dtype) for part in parts)
            return grad_query, grad_key, grad_value
        # every kernel writes its part into this buffer
        grad_keys = self.key.new_empty((2, *self.key.shape))
        for grad, part in zip(grad_keys, parts, strict=True):
            _add_up(part, grad[:, :, 0])
        grad_hidden = grad_keys[:, :, :, 1:]
        grad_halo = None if halo is None else torch.empty_like(halo)
        for segment, (rows, samples), band in self._bands():
            where = rows, samples, self.hidden_queries
            band.backward(
                grad_out[where], self.query[where], *self._hidden_keys(rows, samples), out[where],
                lse[where], grad_query[where], grad_hidden[:, rows, samples],
                _of_segment(halo, segment, samples), _of_segment(grad_halo, segment, samples),
            )  # fmt: skip
        if grad_halo is not None:
            assert self.layout.parallel is not None
            for segment, grad_tail in enumerate(self.layout.parallel.tails(grad_halo)):
                grad_hidden[:, self._tail(segment)] += grad_tail
        grad_key, grad_value = grad_keys.unbind()
        return grad_query, grad_key, grad_value

    def _bands(self) -> Iterator[tuple[int, tuple[slice, slice], Any]]:
        """(segment number, (rows, samples), Band) for each segment, and each sample where bands differ."""
        start = self.layout.start
        for number, segment in enumerate(self.layout.segments):
            for sample in range(start.shape[1]):
                samples = slice(None) if start.shape[1] == 1 else slice(sample, sample + 1)
                starts = start[segment.rows, sample]
                if segment.begin:
                    starts = starts - segment.begin
                query = self.query[segment.rows, samples, self.hidden_queries]
                make = _band_class(query.device.type, self.hidden, query.shape[-1])
                band = make(query, self.hidden, starts, self.layout.window, self.scale)
                yield number, (segment.rows, samples), band

    def _hidden_keys(self, rows: slice, samples: slice) -> tuple[Tensor, Tensor]:
        return self.key[rows, samples, 1:], self.value[rows, samples, 1:]

    def _halo(self) -> Tensor | None:
        if not self.layout.halo:
            return None
        assert self.layout.parallel is not None
        tails = [torch.stack(self._hidden_keys(self._tail(segment), slice(None))) for segment in range(2)]
        return self.layout.parallel.halos(torch.stack(tails))

    def _tail(self, segment: int) -> slice:
        """The last W - 1 rows of a segment."""
        end = self.layout.segments[segment].rows.stop
        return slice(end - self.layout.halo, end)


@lru_cache
def _band_class(device: str, hidden: int, dim: int) -> Any:
    """Triton's on CUDA, for as many hidden copies as fit there. An exported model's copy of this file comes
    without that kernel, some machines without Triton: there the band is plain matrix products.
    """
    if device != "cuda":
        return Band
    try:
        kernels = importlib.import_module(".kernels.triton_band", __package__)
    except ImportError:
        return Band
    return kernels.TritonBand if kernels.fits(hidden, dim) else Band


def _of_segment(halo: Tensor | None, segment: int, samples: slice) -> Tensor | None:
    return None if halo is None else halo[segment][:, :, samples]


def _add_up(parts: Tensor, total: Tensor) -> None:
    """Sum of [s, b, n, g, d] over its n parts, written into [s, b, g, d]."""
    if parts.shape[2] == 1:
        total.copy_(parts.squeeze(2))
    else:
        torch.sum(parts, 2, out=total)

"""The fast path: causal flash calls over the originals plus a small banded product, merged by log-sum-exp.

The K copies of a query are more query heads over the same keys, those of the original tokens: one ordinary
causal call does the global part of all of them, with no mask. Hidden queries then add the few hidden keys of
their band (``band.py``). In backward the flash kernel is called with the *merged* output and log-sum-exp:
its result is then the originals' exact share, and the band takes the rest.

Packed documents are one causal call each. Under context parallelism the other ranks' originals that a slice
sees are one more call without a mask for each of their slices, merged in the same way (``layout.py``).

Legend: s rows on this rank, b samples, K copies, m of them asking (all, or the last alone), h query heads,
g key/value heads, d head dimension.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from phd.attention.band import Band
from phd.attention.context_parallel import ContextParallel
from phd.attention.kernels import attention_backward, attention_forward, merge
from phd.attention.layout import Layout, rank_runs


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: Layout,
    scale: float,
    parallel: ContextParallel | None = None,
) -> Tensor:
    """PHD attention with memory O(s).

    Args:
        query: [s, b, m, h, d]; m is K, or 1 for the last copy alone.
        key, value: [s, b, K, g, d].
        layout: of these rows.
        parallel: the context-parallel group whose ranks hold the other rows of ``layout``.

    Returns:
        [s, b, m, h, d].
    """
    return _FlashAttention.apply(query, key, value, layout, scale, parallel)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        scale: float,
        parallel: ContextParallel | None,
    ) -> Tensor:
        # the kernels want the numbers of a head side by side
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        attention = _Attention(query, key, value, layout, scale, parallel)
        out, lse, halo = attention.forward()
        ctx.attention = layout, scale, parallel
        ctx.save_for_backward(query, key, value, out, lse, halo)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, halo = ctx.saved_tensors
        attention = _Attention(query, key, value, *ctx.attention)
        return *attention.backward(grad_out.contiguous(), out, lse, halo), None, None, None


class _Attention:
    """Forward and backward over one layer's query [s, b, m, h, d], key and value [s, b, K, g, d]."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        scale: float,
        parallel: ContextParallel | None,
    ) -> None:
        self.query, self.key, self.value = query, key, value
        self.layout, self.scale, self.parallel = layout, scale, parallel
        self.hidden = key.shape[2] - 1
        # hidden copies among the queries, the last of them
        self.asking = slice(1 if query.shape[2] == key.shape[2] else 0, None)

    def forward(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output [s, b, m, h, d], log-sum-exp [s, b, m, h], halo [2, 2, W-1, b, K-1, g, d] or None."""
        originals = self.key[:, :, 0], self.value[:, :, 0]
        others = self.parallel.blocks_of_others(torch.stack(originals)) if self.parallel else ()
        out, lse = self._documents(*originals)
        if self.parallel:
            # many parts are added
            result = out.to(torch.promote_types(out.dtype, torch.float32))
            self._add_earlier(result, lse, self.layout.runs, *originals)
            for rank, (key, value) in others:
                self._add_earlier(result, lse, self._runs_of(rank), key, value)
        else:
            result = out
        halo = None
        if self.hidden:
            halo = self._halo()
            for run, (rows, samples), band in self._bands():
                where = rows, samples, self.asking
                band.merge(
                    result[where], lse[where], self.query[where], *self._hidden_keys(rows, samples),
                    _of_run(halo, run, samples),
                )  # fmt: skip
        return result.to(out.dtype), lse, halo

    def backward(
        self, grad_out: Tensor, out: Tensor, lse: Tensor, halo: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, from what ``forward`` returned."""
        originals = torch.stack((self.key[:, :, 0], self.value[:, :, 0]))
        given = grad_out, out, lse
        grad_query, *grads = self._documents_backward(*given, *originals)
        grad_originals = torch.stack(grads)
        if self.parallel:

            def share(runs: tuple, keys: Tensor) -> Tensor:
                """Add to grad_query; return the gradients of these keys and values."""
                return self._earlier_backward(grad_query, runs, *given, keys)

            grad_originals += share(self.layout.runs, originals)
            grad_originals += self.parallel.sum_from_others(
                originals, lambda rank, keys: share(self._runs_of(rank), keys)
            )
        grad_keys = self.key.new_empty((2, *self.key.shape))
        grad_keys[:, :, :, 0] = grad_originals
        if self.hidden:
            grad_hidden = grad_keys[:, :, :, 1:]
            grad_halo = None if halo is None else torch.zeros_like(halo)
            for run, (rows, samples), band in self._bands():
                where = rows, samples, self.asking
                parts = band.backward(
                    grad_out[where], self.query[where], *self._hidden_keys(rows, samples), out[where],
                    lse[where], grad_query[where], _of_run(halo, run, samples),
                )  # fmt: skip
                for kind, part in enumerate(parts):
                    grad_hidden[kind, rows, samples] = part[self.layout.window - 1 :]
                    if grad_halo is not None:
                        grad_halo[run, kind, :, samples] = part[: self.layout.window - 1]
            if grad_halo is not None:
                assert self.parallel is not None
                for run, grad_tail in enumerate(self.parallel.tails(grad_halo)):
                    grad_hidden[:, self._tail(run)] += grad_tail
        grad_key, grad_value = grad_keys.unbind()
        return grad_query, grad_key, grad_value

    def _documents(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Each document's part of each run, causally over itself."""
        if len(self.layout.pieces) == 1:
            return _causal_or_full(self.query, key, value, self.scale, causal=True)
        out, lse = self._empty_results()
        for piece in self.layout.pieces:
            where = piece.rows, piece.samples
            out[where], lse[where] = _causal_or_full(
                self.query[where], key[where], value[where], self.scale, causal=True
            )
        return out, lse

    def _documents_backward(
        self, grad_out: Tensor, out: Tensor, lse: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if len(self.layout.pieces) == 1:
            return _causal_or_full_backward(
                grad_out, self.query, key, value, out, lse, self.scale, causal=True
            )
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (self.query, key, value))
        for piece in self.layout.pieces:
            where = piece.rows, piece.samples
            grad_query[where], grad_key[where], grad_value[where] = _causal_or_full_backward(
                grad_out[where], self.query[where], key[where], value[where], out[where], lse[where],
                self.scale, causal=True,
            )  # fmt: skip
        return grad_query, grad_key, grad_value

    def _add_earlier(self, out: Tensor, lse: Tensor, runs: tuple, key: Tensor, value: Tensor) -> None:
        """Add the originals of a rank's ``runs`` to the pieces that see them."""
        for piece, rows in self.layout.earlier(runs):
            where, keys = (piece.rows, piece.samples), (rows, piece.samples)
            more = _causal_or_full(self.query[where], key[keys], value[keys], self.scale, causal=False)
            merge(out[where], lse[where], *more)

    def _earlier_backward(
        self, grad_query: Tensor, runs: tuple, grad_out: Tensor, out: Tensor, lse: Tensor, originals: Tensor
    ) -> Tensor:
        grads = torch.zeros_like(originals)
        for piece, rows in self.layout.earlier(runs):
            where, keys = (piece.rows, piece.samples), (rows, piece.samples)
            grad_rows, grad_key, grad_value = _causal_or_full_backward(
                grad_out[where], self.query[where], originals[0][keys], originals[1][keys], out[where],
                lse[where], self.scale, causal=False,
            )  # fmt: skip
            grad_query[where] += grad_rows
            grads[0][keys] += grad_key
            grads[1][keys] += grad_value
        return grads

    def _bands(self) -> Iterator[tuple[int, tuple[slice, slice], Any]]:
        """(number of the run, (rows, samples), Band) for each run, and each sample where bands differ."""
        start = self.layout.start
        for number, run in enumerate(self.layout.runs):
            for sample in range(start.shape[1]):
                samples = slice(None) if start.shape[1] == 1 else slice(sample, sample + 1)
                starts = start[run.rows, sample] - run.begin
                query = self.query[run.rows, samples, self.asking]
                make = _band_class(query.device)
                band = make(query, self.hidden, starts, self.layout.window, self.scale)
                yield number, (run.rows, samples), band

    def _hidden_keys(self, rows: slice, samples: slice) -> tuple[Tensor, Tensor]:
        return self.key[rows, samples, 1:], self.value[rows, samples, 1:]

    def _halo(self) -> Tensor | None:
        if not self.layout.halo:
            return None
        assert self.parallel is not None
        tails = [torch.stack(self._hidden_keys(self._tail(run), slice(None))) for run in range(2)]
        return self.parallel.halos(torch.stack(tails))

    def _tail(self, run: int) -> slice:
        """The last W - 1 rows of a run."""
        end = self.layout.runs[run].rows.stop
        return slice(end - self.layout.halo, end)

    def _runs_of(self, rank: int) -> tuple:
        assert self.parallel is not None
        return rank_runs(self.parallel.size * self.query.shape[0], rank, self.parallel.size)

    def _empty_results(self) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        return torch.empty_like(self.query), self.query.new_empty(self.query.shape[:-1], dtype=dtype)


def _band_class(device: torch.device) -> Any:
    """Triton's on CUDA. An exported model's copy of this file comes without that kernel, some machines
    without Triton: there the band is plain matrix products.
    """
    if device.type == "cuda":
        with contextlib.suppress(ImportError):
            return importlib.import_module(".kernels.triton_band", __package__).TritonBand
    return Band


def _of_run(halo: Tensor | None, run: int, samples: slice) -> Tensor | None:
    return None if halo is None else halo[run][:, :, samples]


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
    """Gradients of query [s, b, m, h, d], key and value [t, b, g, d]."""
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
    # every copy reads the original keys
    return grad_query, grad_key.sum(2), grad_value.sum(2)


def _fold(rows: Tensor) -> Tensor:
    """[s, b, m, h, x] -> [1, b*m*h, s, x]: samples and copies become heads."""
    return rows.flatten(1, 3).transpose(0, 1).unsqueeze(0)


def _fold_keys(rows: Tensor, copies: int) -> Tensor:
    """[t, b, g, d] -> [1, b*m*g, t, d], the same for every copy."""
    return _fold(rows.unsqueeze(2).expand(-1, -1, copies, -1, -1))


def _unfold(heads: Tensor, samples: int, copies: int) -> Tensor:
    """Inverse of ``_fold``: [1, b*m*h, s, x] -> [s, b, m, h, x]."""
    return heads.squeeze(0).transpose(0, 1).unflatten(1, (samples, copies, -1))

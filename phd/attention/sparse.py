"""Attention over the originals that a sparse layer keeps: causal squares and rectangles, merged by their
log-sum-exp. No mask, and no work on keys that are not seen but for the causal calls' own.

In a rectangle all rows see the same keys: the copies and the heads of a group are then more rows, and a key
is read once for all of them. Windows that overlap are views of the same keys.

Legend: t kept keys, b samples, m query copies, h query heads, g key/value heads, r = h/g, d head dimension,
n blocks of R rows in a part, T keys of each.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from phd.attention.kept import RowPart, kept_keys
from phd.attention.kernels import attention_backward, attention_forward, merge
from phd.attention.layout import Layout

_WINDOW_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Elements of the windows' gradients at a time: 16 MiB each of keys and values in fp32, near a CPU's cache,
or 512 MiB in bf16, so that launches do not dominate on a GPU. (Has not been run on a GPU yet.)
"""


class SparseOriginals:
    """Forward and backward over one layer's query [s, b, m, h, d], original key and value [s, b, g, d]."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> None:
        self.query, self.scale, self.parallel = query, scale, layout.parallel
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.kept = kept_keys(layout.groupless or layout, query.device)
        if self.kept.exchange is None:
            self.keys, self.values = key.contiguous(), value.contiguous()
        else:
            assert self.parallel is not None
            self.keys, self.values = self.parallel.fetch(torch.stack((key, value)), self.kept.exchange)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output [s, b, m, h, d] in fp32 at least, and log-sum-exp [s, b, m, h]."""
        out = torch.empty_like(self.query, dtype=self.dtype)
        lse = self.query.new_empty(self.query.shape[:-1], dtype=self.dtype)
        for part in self._parts():
            where = part.rows, part.samples
            query = self.query[where]
            more, more_lse = attention_forward(
                self._fold(query, part),
                self._keys_of(self.keys, part),
                self._keys_of(self.values, part),
                self.scale,
                causal=part.causal,
            )
            more = self._unfold(more, part, query)
            more_lse = self._unfold(more_lse.unsqueeze(-1), part, query).squeeze(-1)
            if part.causal:
                out[where], lse[where] = more, more_lse
            else:
                merge(out[where], lse[where], more, more_lse)
        return out, lse

    def backward(self, grad_out: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the query and of key and value, [2, s, b, g, d]; ``out`` and ``lse`` may be those of a
        softmax over more keys.
        """
        grad_query = torch.empty_like(self.query, dtype=self.dtype)
        grads = self.keys.new_zeros((2, *self.keys.shape), dtype=self.dtype)
        for part in self._parts():
            where = part.rows, part.samples
            grad_rows, *grad_keys = attention_backward(
                self._fold(grad_out[where], part),
                self._fold(self.query[where], part),
                self._keys_of(self.keys, part),
                self._keys_of(self.values, part),
                self._fold(out[where], part),
                self._fold(lse[where].unsqueeze(-1), part).squeeze(-1),
                self.scale,
                causal=part.causal,
            )
            grad_rows = self._unfold(grad_rows, part, self.query[where])
            if part.causal:
                grad_query[where] = grad_rows
            else:
                grad_query[where] += grad_rows
            for total, grad in zip(grads, grad_keys, strict=True):
                self._add_keys(total[:, part.samples], grad, part)
        if self.kept.exchange is not None:
            assert self.parallel is not None
            grads = self.parallel.give_back(grads, self.kept.exchange, self.query.shape[0])
        return grad_query.to(self.query.dtype), grads

    def _parts(self) -> Iterator[RowPart]:
        """The parts, in pieces whose windows have ``_WINDOW_ELEMENTS`` at most."""
        most = _WINDOW_ELEMENTS[self.keys.device.type]
        for part in self.kept.parts:
            if part.causal or not isinstance(part.keys, slice):
                yield part
                continue
            size = part.block_rows
            window = (part.keys.stop - part.keys.start) * self.keys[0, part.samples].numel()
            step = max(1, most // window)
            for first in range(0, part.count, step):
                count = min(step, part.count - first)
                start = part.rows.start + first * size
                keys = slice(part.keys.start + first * size, part.keys.stop + first * size)
                yield replace(part, rows=slice(start, start + count * size), keys=keys, count=count)

    def _fold(self, rows: Tensor, part: RowPart) -> Tensor:
        """[n*R, b, m, h, x] -> [n, b*m*h, R, x] in a causal part; [n, b*g, R*m*r, x] in a rectangle."""
        rows = rows.unflatten(0, (part.count, -1))
        if part.causal:
            return rows.flatten(2, 4).transpose(1, 2)
        # [n, R, b, m, g, r, x] -> [n, b, g, R, m, r, x]
        rows = rows.unflatten(4, (self.keys.shape[2], -1)).permute(0, 2, 4, 1, 3, 5, 6)
        return rows.flatten(3, 5).flatten(1, 2)

    def _unfold(self, folded: Tensor, part: RowPart, like: Tensor) -> Tensor:
        """Inverse of ``_fold``; ``like`` [n*R, b, m, h, d]."""
        _, samples, copies, heads = like.shape[:4]
        if part.causal:
            return folded.transpose(1, 2).unflatten(2, (samples, copies, heads)).flatten(0, 1)
        groups = self.keys.shape[2]
        # [n, b*g, R*m*r, x] -> [n, b, g, R, m, r, x] -> [n, R, b, m, g, r, x]
        rows = folded.unflatten(2, (-1, copies, heads // groups)).unflatten(1, (samples, groups))
        return rows.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(0, 1)

    def _keys_of(self, keys: Tensor, part: RowPart) -> Tensor:
        """[t, b, g, d] -> [n, b*m*g, R, d] in a causal part, the same for every copy; [n, b*g, T, d] in a
        rectangle.
        """
        rows = keys[:, part.samples]
        if part.causal:
            assert isinstance(part.keys, slice)
            count, copies = part.rows.stop - part.rows.start, self.query.shape[2]
            rows = rows[part.keys.start :][:count].unflatten(0, (part.count, -1))
            rows = rows.unsqueeze(3).expand(-1, -1, -1, copies, -1, -1)
            return rows.flatten(2, 4).transpose(1, 2)
        if not isinstance(part.keys, slice):
            return rows[part.keys].flatten(1, 2).transpose(0, 1).unsqueeze(0)
        # [n, T, b, g, d] -> [n, b*g, T, d], still a view
        return self._windows(rows, part).movedim(1, 3).flatten(1, 2)

    def _windows(self, rows: Tensor, part: RowPart, first: int = 0, step: int = 1) -> Tensor:
        """What every ``step``-th block of a rectangle from its ``first`` on reads of [t, b, g, d]: an
        overlapping view [n, T, b, g, d], no copy.
        """
        assert isinstance(part.keys, slice)
        size = part.block_rows
        rows = rows[part.keys.start + first * size :]
        shape = len(range(first, part.count, step)), part.keys.stop - part.keys.start, *rows.shape[1:]
        return rows.as_strided(shape, (step * size * rows.stride(0), *rows.stride()))

    def _add_keys(self, total: Tensor, grad: Tensor, part: RowPart) -> None:
        """Add the gradients of ``_keys_of`` to [t, b, g, d]."""
        samples, groups = total.shape[1:3]
        if part.causal:
            # every copy reads the same keys: [n, b*m*g, R, d] -> [n*R, b, g, d]
            grad = grad.unflatten(1, (samples, -1, groups)).sum(2).movedim(3, 1).flatten(0, 1)
            assert isinstance(part.keys, slice)
            total[part.keys.start :][: len(grad)] += grad
            return
        # [n, b*g, T, d] -> [n, T, b, g, d]
        grad = grad.unflatten(1, (samples, groups)).movedim(3, 1)
        if not isinstance(part.keys, slice):
            total.index_add_(0, part.keys, grad[0].to(total.dtype))
            return
        # in turns of windows that do not overlap
        turns = -(-grad.shape[1] // part.block_rows)
        for turn in range(min(turns, part.count)):
            self._windows(total, part, turn, turns).add_(grad[turn::turns])

"""The hidden-to-hidden part of PHD attention: a band of W positions, computed a block of positions at a time.

A hidden query sees the hidden keys from its band's start (of its window and its chunk) to its own position:
a few dozen keys beside thousands of originals. The keys of a block of B positions are those of the block
and of the W - 1 positions before it; the mask is made from the start of each position's band, so one code
serves PHD, PHD-SWA, PHD-CSWA and any sequence length. Scores are made and used up in slices that fit a
core's cache.

Legend: s positions, b samples, K copies, h query heads, g key/value heads, r = h/g, d head dimension,
B positions in a block, n = ceil(s/B) blocks, R = r*B*(K-1) query rows and T = (B+W-1)*(K-1) key rows of a
block.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_SLICE_ELEMENTS = 1 << 18
"""Scores computed at a time: 1 MiB in fp32."""


class Band:
    """Forward and backward of the banded part for one set of shapes.

    Args:
        query: [s, b, K, h, d]; gives the shapes, dtype and device.
        groups: g.
        start: [s], first position whose hidden keys each position's hidden queries see.
        window: W, the longest reach of ``start`` (positions, the own one included).
        scale: softmax scale.
    """

    def __init__(self, query: Tensor, groups: int, start: Tensor, window: int, scale: float) -> None:
        self.length, self.samples, copies, heads, self.dim = query.shape
        self.hidden = copies - 1
        self.groups, self.repeat = groups, heads // groups
        # About 32 query rows a head: enough work for a matrix product, few masked keys around the band.
        self.block = max(8, 32 // self.hidden)
        self.blocks = -(-self.length // self.block)
        self.halo = window - 1
        self.scale = scale
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.rows = self.repeat * self.block * self.hidden
        self.keys = (self.block + self.halo) * self.hidden

        device = query.device
        position = torch.arange(self.block, device=device)[:, None, None, None]
        copy = torch.arange(self.hidden, device=device)
        offset = torch.arange(-self.halo, self.block, device=device)[None, None, :, None]
        # [B, K-1, B+W-1, K-1]: the part of the rule that is the same in every block
        self.causal = (offset < position) | ((offset == position) & (copy <= copy[:, None, None]))
        self.offset = offset
        pad = self.blocks * self.block - self.length
        last = torch.arange(self.length, self.length + pad, device=device)
        # [n, B, 1, 1, 1], counted from the first position of the block
        start = torch.cat([start, last]).view(self.blocks, self.block, 1, 1, 1)
        self.start = start - self.block * torch.arange(self.blocks, device=device).view(-1, 1, 1, 1, 1)

    def merge(self, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Add the hidden keys to the hidden queries' attention over the originals, in place.

        Args:
            out: [s, b, K, h, d], softmax over the originals alone; copies 1.. are overwritten.
            lse: [s, b, K, h], its log-sum-exp; copies 1.. are overwritten.
            query: [s, b, K, h, d]; key, value: [s, b, K, g, d].
        """
        queries = self._pack_queries(query).mul_(self.scale)
        keys, values = self._pack_keys(key), self._pack_keys(value)
        context, lse_rows = self._pack_queries(out), self._pack_queries(lse.unsqueeze(-1))
        for group, part in self._slices():
            scores = self._scores(queries, keys, group, part)
            above = lse_rows[group, part]
            top = torch.maximum(scores.amax(-1, keepdim=True), above)
            scores.sub_(top).exp_()
            weight = (above - top).exp_()
            total = scores.sum(-1, keepdim=True).add_(weight)
            banded = torch.bmm(scores, self._windows(values, group, part))
            context[group, part] = torch.addcmul(banded, context[group, part], weight).div_(total)
            lse_rows[group, part] = total.log_().add_(top)
        self._hidden(out).copy_(self._unpack_queries(context))
        self._hidden(lse.unsqueeze(-1)).copy_(self._unpack_queries(lse_rows))

    def backward(
        self, grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients that flow through the hidden keys.

        Args:
            grad_out, query, key, value: as in ``merge``.
            out, lse: merged, as ``merge`` left them.

        Returns:
            of the hidden queries [s, b, K-1, h, d], of the hidden keys and values [s, b, K-1, g, d].
        """
        queries = self._pack_queries(query).mul_(self.scale)
        keys, values = self._pack_keys(key), self._pack_keys(value)
        grads, lse_rows = self._pack_queries(grad_out), self._pack_queries(lse.unsqueeze(-1))
        delta = self._pack_queries(out).mul_(grads).sum(-1, keepdim=True)
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        for group, part in self._slices():
            weights = self._scores(queries, keys, group, part).sub_(lse_rows[group, part]).exp_()
            self._add_windows(grad_values, torch.bmm(weights.mT, grads[group, part]), group, part)
            grad_scores = torch.bmm(grads[group, part], self._windows(values, group, part).mT)
            grad_scores.sub_(delta[group, part]).mul_(weights)
            grad_queries[group, part] = torch.bmm(grad_scores, self._windows(keys, group, part)).mul_(
                self.scale
            )
            self._add_windows(grad_keys, torch.bmm(grad_scores.mT, queries[group, part]), group, part)
        return (
            self._unpack_queries(grad_queries),
            self._unpack_keys(grad_keys),
            self._unpack_keys(grad_values),
        )

    def _slices(self) -> Iterator[tuple[int, slice]]:
        """(sample and group, range of blocks) in turn."""
        step = max(1, _SLICE_ELEMENTS // (self.rows * self.keys))
        for group in range(self.samples * self.groups):
            for first in range(0, self.blocks, step):
                yield group, slice(first, min(first + step, self.blocks))

    def _scores(self, queries: Tensor, keys: Tensor, group: int, part: slice) -> Tensor:
        """Masked scores [blocks, R, T] of one slice."""
        visible = self.causal & (self.offset >= self.start[part])
        # [blocks, 1, B*(K-1), T]: the r heads of a group share it
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device).masked_fill_(
            ~visible, -torch.inf
        )
        mask = mask.view(mask.shape[0], 1, self.block * self.hidden, self.keys)
        scores = torch.bmm(queries[group, part], self._windows(keys, group, part).mT)
        scores.unflatten(1, (self.repeat, -1)).add_(mask)
        return scores

    def _hidden(self, rows: Tensor) -> Tensor:
        """Copies 1.. of [s, b, K, ...]."""
        return rows[:, :, 1:]

    def _pack_queries(self, rows: Tensor) -> Tensor:
        """[s, b, K, h, x] -> hidden rows [b*g, n, R, x], zero beyond s."""
        size = rows.shape[-1]
        packed = torch.zeros(
            (self.samples, self.groups, self.blocks, self.repeat, self.block, self.hidden, size),
            dtype=self.dtype,
            device=rows.device,
        )
        # [s, b, K-1, g, r, x] -> [b, g, r, s, K-1, x]
        rows = self._hidden(rows).unflatten(3, (self.groups, self.repeat)).permute(1, 3, 4, 0, 2, 5)
        whole, rest = divmod(self.length, self.block)
        body = rows[:, :, :, : whole * self.block].unflatten(3, (whole, self.block))
        packed[:, :, :whole] = body.transpose(2, 3)
        if rest:
            packed[:, :, whole, :, :rest] = rows[:, :, :, whole * self.block :]
        return packed.view(self.samples * self.groups, self.blocks, self.rows, size)

    def _unpack_queries(self, packed: Tensor) -> Tensor:
        """Inverse of ``_pack_queries``: [b*g, n, R, x] -> [s, b, K-1, h, x]."""
        packed = packed.view(
            self.samples, self.groups, self.blocks, self.repeat, self.block, self.hidden, packed.shape[-1]
        )
        # [b, g, n, r, B, K-1, x] -> [n, B, b, K-1, g, r, x] -> [s, b, K-1, h, x]
        return packed.permute(2, 4, 0, 5, 1, 3, 6).flatten(0, 1)[: self.length].flatten(3, 4)

    def _pack_keys(self, rows: Tensor) -> Tensor:
        """[s, b, K, g, d] -> hidden rows [b*g, W-1 + n*B, K-1, d], zero outside of the sequence."""
        padded = self.halo + self.blocks * self.block
        packed = torch.zeros(
            (self.samples, self.groups, padded, self.hidden, self.dim), dtype=self.dtype, device=rows.device
        )
        packed[:, :, self.halo : self.halo + self.length] = self._hidden(rows).permute(1, 3, 0, 2, 4)
        return packed.view(self.samples * self.groups, padded, self.hidden, self.dim)

    def _unpack_keys(self, packed: Tensor) -> Tensor:
        """Inverse of ``_pack_keys``: [b*g, W-1 + n*B, K-1, d] -> [s, b, K-1, g, d]."""
        packed = packed[:, self.halo : self.halo + self.length]
        return packed.unflatten(0, (self.samples, self.groups)).permute(2, 0, 3, 1, 4)

    def _windows(self, packed: Tensor, group: int, part: slice, stride: int = 1) -> Tensor:
        """Key rows of every ``stride``-th block of a slice: an overlapping view [blocks, T, d], no copy."""
        row = self.hidden * self.dim
        first = packed[group, part.start * self.block :]
        count = -(-(part.stop - part.start) // stride)
        return first.as_strided((count, self.keys, self.dim), (stride * self.block * row, self.dim, 1))

    def _add_windows(self, packed: Tensor, windows: Tensor, group: int, part: slice) -> None:
        """Add [blocks, T, d] where ``_windows`` reads: in turns of blocks whose windows do not overlap."""
        turns = -(-(self.block + self.halo) // self.block)
        for turn in range(min(turns, windows.shape[0])):
            self._windows(packed, group, slice(part.start + turn, part.stop), turns).add_(
                windows[turn::turns]
            )

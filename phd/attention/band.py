"""The hidden-to-hidden part of PHD attention: a band of W positions, a block of positions at a time.

A hidden query sees the hidden keys from its band's start (of its window and of its chunk) to its own
position: a few dozen keys beside thousands of originals. The keys of a block of B positions are those of the
block and of the W - 1 positions before it; a mask made from the start of each position's band says which. So
one code serves PHD, PHD-SWA, PHD-CSWA and any sequence length. Slices of blocks are packed, used and unpacked
while they are in cache.

Legend: s positions, b samples, K copies, m query copies (the last m), h query heads, g key/value heads,
d head dimension, B positions in a block, n blocks in a slice, R = B*m query rows and T = (B+W-1)*(K-1) key
rows of a block.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from phd.attention.kernels import attention_backward, attention_forward, merge

_SLICE_ELEMENTS = 1 << 20
"""Query elements packed at a time: 4 MiB in fp32."""


class Band:
    """Forward and backward of the banded part for one set of shapes.

    Computes in fp32 at least: its results are added to others that are rounded already.

    Args:
        query: [s, b, m, h, d], hidden copies K-m..K-1; gives the shapes, dtype and device.
        hidden: K - 1, the number of hidden copies among the keys.
        start: [s], first row whose hidden keys each row's hidden queries see; down to -(W - 1). Never
            goes down from row to row.
        window: W, the longest reach of ``start`` (positions, the own one included).
        scale: softmax scale.
    """

    def __init__(self, query: Tensor, hidden: int, start: Tensor, window: int, scale: float) -> None:
        self.length, samples, self.query_copies, heads, dim = query.shape
        self.hidden = hidden
        # About 32 query rows: enough for a matrix product, few masked keys around the band.
        self.block = max(8, 32 // self.query_copies)
        self.halo = window - 1
        self.start = start
        self.scale = scale
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        block_elements = self.block * self.query_copies * samples * heads * dim
        self.step = self.block * max(1, _SLICE_ELEMENTS // block_elements)

        position = torch.arange(self.block, device=query.device).view(-1, 1, 1, 1)
        copy = torch.arange(hidden, device=query.device)
        # [1, 1, B+W-1, 1], counted from the first position of the block
        self.key_position = torch.arange(-self.halo, self.block, device=query.device).view(1, 1, -1, 1)
        own = (self.key_position == position) & (copy <= copy[hidden - self.query_copies :].view(-1, 1, 1))
        # [B, m, B+W-1, K-1]: the part of the rule that is the same in every block
        self.causal = (self.key_position < position) | own

    def merge(
        self, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor, halo: Tensor | None = None
    ) -> None:
        """Add the hidden keys to the hidden queries' attention over the originals, in place.

        Args:
            out: [s, b, m, h, d], softmax over the originals alone.
            lse: [s, b, m, h], its log-sum-exp.
            query: [s, b, m, h, d].
            key, value: [s, b, K-1, g, d], the hidden copies.
            halo: [2, W-1, b, K-1, g, d], hidden keys and values of the positions before the first row;
                None where no start reaches there.
        """
        keys = self._pack_keys(key, None if halo is None else halo[0])
        values = self._pack_keys(value, None if halo is None else halo[1])
        for part in self._slices():
            band_out, band_lse = attention_forward(
                self._pack(query, part),
                self._windows(keys, part),
                self._windows(values, part),
                self.scale,
                self._mask(part),
            )
            band_lse = self._unpack(band_lse.unsqueeze(-1), lse.shape[3]).squeeze(-1)
            merge(
                out[part],
                lse[part],
                self._unpack(band_out, lse.shape[3])[: part.stop - part.start],
                band_lse[: part.stop - part.start],
            )

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        grad_query: Tensor,
        grad_keys: Tensor,
        halo: Tensor | None = None,
        grad_halo: Tensor | None = None,
    ) -> None:
        """Gradients that flow through the hidden keys.

        Args:
            grad_out, query, key, value, halo: as in ``merge``.
            out, lse: merged, as ``merge`` left them.
            grad_query: [s, b, m, h, d]; added to.
            grad_keys: [2, s, b, K-1, g, d], of the hidden keys and values; written.
            grad_halo: [2, W-1, b, K-1, g, d]; written. Given if the halo is.
        """
        keys = self._pack_keys(key, None if halo is None else halo[0])
        values = self._pack_keys(value, None if halo is None else halo[1])
        grads = torch.zeros_like(keys), torch.zeros_like(values)
        heads = query.shape[3]
        for part in self._slices():
            grad_rows, *grad_windows = attention_backward(
                self._pack(grad_out, part),
                self._pack(query, part),
                self._windows(keys, part),
                self._windows(values, part),
                self._pack(out, part),
                self._pack(lse.unsqueeze(-1), part).squeeze(-1),
                self.scale,
                self._mask(part),
            )
            rows = grad_query[part]
            rows += self._unpack(grad_rows, heads)[: part.stop - part.start]
            for grad, windows in zip(grads, grad_windows, strict=True):
                self._add_windows(grad, windows, part)
        for kind, grad in enumerate(grads):
            rows = self._unpack_keys(grad, key)
            grad_keys[kind] = rows[self.halo :]
            if grad_halo is not None:
                grad_halo[kind] = rows[: self.halo]

    def _slices(self) -> Iterator[slice]:
        """Ranges of positions, whole blocks but for the last."""
        for first in range(0, self.length, self.step):
            yield slice(first, min(first + self.step, self.length))

    def _mask(self, part: slice) -> Tensor:
        """Additive mask [n, 1, R, T]."""
        # beyond the end from 0, so that every row sees some key
        missing = self.block * self._blocks(part) - (part.stop - part.start)
        start = F.pad(self.start[part], (0, missing)).view(-1, self.block, 1, 1, 1)
        first = torch.arange(part.start, part.stop, self.block, device=start.device).view(-1, 1, 1, 1, 1)
        visible = self.causal & (self.key_position >= start - first)
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=start.device)
        return mask.masked_fill_(~visible, -torch.inf).flatten(3, 4).flatten(1, 2).unsqueeze(1)

    def _blocks(self, part: slice) -> int:
        return -(-(part.stop - part.start) // self.block)

    def _pack(self, rows: Tensor, part: slice) -> Tensor:
        """[s, b, m, h, x] -> rows of a slice [n, b*h, R, x], zero beyond s."""
        blocks = self._blocks(part)
        # [positions, m, b, h, x]
        rows = rows[part].transpose(1, 2).to(self.dtype)
        missing = blocks * self.block - rows.shape[0]
        if missing:
            rows = F.pad(rows, (0, 0) * 4 + (0, missing))
        return rows.reshape(blocks, self.block * self.query_copies, -1, rows.shape[-1]).transpose(1, 2)

    def _unpack(self, packed: Tensor, heads: int) -> Tensor:
        """Inverse of ``_pack``, padding included: [n, b*h, R, x] -> [n*B, b, m, h, x]."""
        rows = packed.transpose(1, 2).flatten(0, 1).unflatten(0, (-1, self.query_copies))
        # [n*B, m, b*h, x]
        return rows.unflatten(2, (-1, heads)).transpose(1, 2)

    def _pack_keys(self, rows: Tensor, halo: Tensor | None) -> Tensor:
        """[s, b, K-1, g, d] -> [W-1 + s + padding, K-1, b*g, d], zero outside of the sequence."""
        samples, _, groups, dim = rows.shape[1:]
        padded = self.halo + self.block * self._blocks(slice(0, self.length))
        packed = rows.new_zeros((padded, self.hidden, samples, groups, dim), dtype=self.dtype)
        packed[self.halo : self.halo + self.length] = rows.transpose(1, 2)
        if halo is not None:
            packed[: self.halo] = halo.transpose(1, 2)
        return packed.flatten(2, 3)

    def _unpack_keys(self, packed: Tensor, like: Tensor) -> Tensor:
        """Inverse of ``_pack_keys``: -> [W-1 + s, b, K-1, g, d]; ``like`` is one of its arguments."""
        rows = packed[: self.halo + self.length]
        return rows.unflatten(2, like.shape[1:4:2]).transpose(1, 2)

    def _windows(self, packed: Tensor, part: slice, stride: int = 1) -> Tensor:
        """Key rows of every ``stride``-th block of a slice: an overlapping view [n, b*g, T, d], no copy."""
        _, _, heads, dim = packed.shape
        count = -(-self._blocks(part) // stride)
        keys = (self.block + self.halo) * self.hidden
        block_stride = stride * self.block * self.hidden * heads * dim
        return packed[part.start :].as_strided((count, heads, keys, dim), (block_stride, dim, heads * dim, 1))

    def _add_windows(self, packed: Tensor, windows: Tensor, part: slice) -> None:
        """Add [n, b*g, T, d] where ``_windows`` reads: in turns of blocks whose windows do not overlap."""
        turns = -(-(self.block + self.halo) // self.block)
        for turn in range(min(turns, windows.shape[0])):
            later = slice(part.start + turn * self.block, part.stop)
            self._windows(packed, later, turns).add_(windows[turn::turns])

"""The hidden-to-hidden part of PHD attention: a band of W positions, a block of positions at a time.

A hidden query sees the hidden keys from its band's start (of its window and of its chunk) to its own
position: a few dozen keys beside thousands of originals. The keys of a block of B positions are those of the
block and of the W - 1 positions before it; a mask made from the start of each position's band says which. So
one code serves PHD, PHD-SWA, PHD-CSWA and any sequence length. Slices of blocks are packed, used and unpacked
while they are in cache.

Legend: s positions, b samples, K copies, h query heads, g key/value heads, d head dimension, B positions in a
block, n blocks in a slice, R = B*(K-1) query rows and T = (B+W-1)*(K-1) key rows of a block.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from phd.attention.kernels import attention_backward, attention_forward

_SLICE_ELEMENTS = 1 << 20
"""Query elements packed at a time: 4 MiB in fp32."""


class Band:
    """Forward and backward of the banded part for one set of shapes.

    Computes in fp32 at least: its results are added to others that are rounded already.

    Args:
        query: [s, b, K, h, d]; gives the shapes, dtype and device.
        start: [s], first position whose hidden keys each position's hidden queries see.
        window: W, the longest reach of ``start`` (positions, the own one included).
        scale: softmax scale.
    """

    def __init__(self, query: Tensor, start: Tensor, window: int, scale: float) -> None:
        self.length, samples, copies, heads, dim = query.shape
        self.hidden = copies - 1
        # About 32 query rows: enough for a matrix product, few masked keys around the band.
        self.block = max(8, 32 // self.hidden)
        self.halo = window - 1
        self.start = start
        self.scale = scale
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        block_elements = self.block * self.hidden * samples * heads * dim
        self.step = self.block * max(1, _SLICE_ELEMENTS // block_elements)

        position = torch.arange(self.block, device=query.device).view(-1, 1, 1, 1)
        copy = torch.arange(self.hidden, device=query.device)
        # [1, 1, B+W-1, 1], counted from the first position of the block
        self.key_position = torch.arange(-self.halo, self.block, device=query.device).view(1, 1, -1, 1)
        own = (self.key_position == position) & (copy <= copy.view(-1, 1, 1))
        # [B, K-1, B+W-1, K-1]: the part of the rule that is the same in every block
        self.causal = (self.key_position < position) | own

    def merge(self, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Add the hidden keys to the hidden queries' attention over the originals, in place.

        Args:
            out: [s, b, K, h, d], softmax over the originals alone; copies 1.. are overwritten.
            lse: [s, b, K, h], its log-sum-exp; copies 1.. are overwritten.
            query: [s, b, K, h, d]; key, value: [s, b, K, g, d].
        """
        keys, values = self._pack_keys(key), self._pack_keys(value)
        for part in self._slices():
            band_out, band_lse = attention_forward(
                self._pack(query, part),
                self._windows(keys, part),
                self._windows(values, part),
                self.scale,
                self._mask(part),
            )
            merged_out, merged_lse = out[part, :, 1:], lse[part, :, 1:, :, None]
            band_out = self._unpack(band_out, merged_out)
            band_lse = self._unpack(band_lse.unsqueeze(-1), merged_lse)
            # exp(band_lse) / (exp(lse) + exp(band_lse))
            share = torch.sigmoid(band_lse - merged_lse)
            merged_out.copy_(torch.lerp(merged_out.to(self.dtype), band_out, share))
            merged_lse.copy_(torch.logaddexp(merged_lse, band_lse))

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        grad_query: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Gradients that flow through the hidden keys.

        Args:
            grad_out, query, key, value: as in ``merge``.
            out, lse: merged, as ``merge`` left them.
            grad_query: [s, b, K, h, d]; copies 1.. are added to.

        Returns:
            gradients of the hidden keys and values, [s, b, K-1, g, d] each.
        """
        keys, values = self._pack_keys(key), self._pack_keys(value)
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        for part in self._slices():
            grad_rows, grad_key_windows, grad_value_windows = attention_backward(
                self._pack(grad_out, part),
                self._pack(query, part),
                self._windows(keys, part),
                self._windows(values, part),
                self._pack(out, part),
                self._pack(lse.unsqueeze(-1), part).squeeze(-1),
                self.scale,
                self._mask(part),
            )
            rows = grad_query[part, :, 1:]
            rows += self._unpack(grad_rows, rows)
            self._add_windows(grad_keys, grad_key_windows, part)
            self._add_windows(grad_values, grad_value_windows, part)
        return self._unpack_keys(grad_keys, key), self._unpack_keys(grad_values, value)

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
        """[s, b, K, h, x] -> hidden rows of a slice [n, b*h, R, x], zero beyond s."""
        blocks = self._blocks(part)
        # [positions, K-1, b, h, x]
        hidden = rows[part, :, 1:].transpose(1, 2).to(self.dtype)
        missing = blocks * self.block - hidden.shape[0]
        if missing:
            hidden = F.pad(hidden, (0, 0) * 4 + (0, missing))
        return hidden.reshape(blocks, self.block * self.hidden, -1, hidden.shape[-1]).transpose(1, 2)

    def _unpack(self, packed: Tensor, like: Tensor) -> Tensor:
        """Inverse of ``_pack``: [n, b*h, R, x] -> [positions, b, K-1, h, x], the shape of ``like``."""
        rows = packed.transpose(1, 2).flatten(0, 1).unflatten(0, (-1, self.hidden))
        # [n*B, K-1, b*h, x]
        return rows[: like.shape[0]].unflatten(2, (-1, like.shape[3])).transpose(1, 2)

    def _pack_keys(self, rows: Tensor) -> Tensor:
        """[s, b, K, g, d] -> hidden rows [W-1 + s + padding, K-1, b*g, d], zero outside of the sequence."""
        samples, _, groups, dim = rows.shape[1:]
        padded = self.halo + self.block * self._blocks(slice(0, self.length))
        packed = rows.new_zeros((padded, self.hidden, samples, groups, dim), dtype=self.dtype)
        packed[self.halo : self.halo + self.length] = rows[:, :, 1:].transpose(1, 2)
        return packed.flatten(2, 3)

    def _unpack_keys(self, packed: Tensor, like: Tensor) -> Tensor:
        """Inverse of ``_pack_keys``, of the shape of ``like`` less copy 0."""
        rows = packed[self.halo : self.halo + self.length]
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

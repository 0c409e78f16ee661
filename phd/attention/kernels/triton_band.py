"""The banded part and its merge as Triton kernels: in place on the flash call's output and log-sum-exp.

The output over the originals is the running state of an online softmax that has seen them already: maximum
lse, sum 1, weighted values out. The kernel goes on from there over the few hidden keys of the band, so
nothing but out and lse is written. Where a row's band starts never goes down within a run: the start of a
tile's first row bounds them all, and tiles beyond a chunk's border are left out. Tested under Triton's
interpreter and compiled for Hopper in CI; never run on a GPU.

Legend: s positions, b samples, K copies, m query copies (the last m), h query heads, g key/value heads,
d head dimension. A tile holds whole positions: rows position * m + copy, keys position * (K-1) + copy.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _visible(query_position, query_copy, key_position, key_copy, start, query_ok, key_ok):
    """The rule between hidden copies: rows against keys."""
    earlier = key_position[None, :] < query_position[:, None]
    own = (key_position[None, :] == query_position[:, None]) & (key_copy[None, :] <= query_copy[:, None])
    reached = key_position[None, :] >= start[:, None]
    return (earlier | own) & reached & query_ok[:, None] & key_ok[None, :]


@triton.jit
def _forward_kernel(
    q, k, v, start, out, lse,
    length, first_key, scale,
    qs, qb, qm, qh, ks, kb, kc, kg, vs, vb, vc, vg, os, ob, om, oh, ls, lb, lm, lh,
    HEADS: tl.constexpr, GROUP: tl.constexpr, QUERY_COPIES: tl.constexpr, HIDDEN: tl.constexpr,
    WINDOW: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    positions: tl.constexpr = ROWS // QUERY_COPIES
    key_positions: tl.constexpr = KEYS // HIDDEN
    begin = tl.program_id(0).to(tl.int64) * positions  # times a stride it may pass 2^31
    sample, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    group = head // GROUP
    row, column, dim = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, BLOCK_D)
    position, copy = begin + row // QUERY_COPIES, row % QUERY_COPIES
    row_ok = (row < positions * QUERY_COPIES) & (position < length)
    tile = row_ok[:, None] & (dim < D)[None, :]
    q_tile = tl.load(
        q + position[:, None] * qs + sample * qb + copy[:, None] * qm + head * qh + dim[None, :],
        tile,
        other=0.0,
    )
    band = tl.load(start + position, row_ok, other=0)
    out_at = out + position[:, None] * os + sample * ob + copy[:, None] * om + head * oh + dim[None, :]
    lse_at = lse + position * ls + sample * lb + copy * lm + head * lh
    weighted = tl.load(out_at, tile, other=0.0).to(tl.float32)
    top = tl.load(lse_at, row_ok, other=0.0)
    total = tl.full([ROWS], 1.0, tl.float32)
    for key_begin in range(tl.load(start + begin), begin + positions, key_positions):
        key_position, key_copy = key_begin + column // HIDDEN, column % HIDDEN
        key_ok = (column < key_positions * HIDDEN) & (key_position >= first_key) & (key_position < length)
        key_tile = key_ok[:, None] & (dim < D)[None, :]
        at = key_position - first_key
        keys = tl.load(
            k + at[:, None] * ks + sample * kb + key_copy[:, None] * kc + group * kg + dim[None, :],
            key_tile, other=0.0,
        )  # fmt: skip
        values = tl.load(
            v + at[:, None] * vs + sample * vb + key_copy[:, None] * vc + group * vg + dim[None, :],
            key_tile, other=0.0,
        )  # fmt: skip
        scores = tl.dot(q_tile, tl.trans(keys), input_precision="ieee") * scale
        seen = _visible(position, HIDDEN - QUERY_COPIES + copy, key_position, key_copy, band, row_ok, key_ok)
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - new_top)
        share = tl.exp(scores - new_top[:, None])
        total = total * shrink + tl.sum(share, 1)
        weighted = weighted * shrink[:, None]
        weighted += tl.dot(share.to(values.dtype), values, input_precision="ieee")
        top = new_top
    tl.store(out_at, (weighted / total[:, None]).to(out.dtype.element_ty), tile)
    tl.store(lse_at, top + tl.log(total), row_ok)


@triton.jit
def _query_kernel(
    q, k, v, start, out, lse, do, dq, delta,
    length, first_key, scale,
    qs, qb, qm, qh, ks, kb, kc, kg, vs, vb, vc, vg, os, ob, om, oh, ls, lb, lm, lh, ds, db, dm, dh,
    gs, gb, gm, gh,
    HEADS: tl.constexpr, GROUP: tl.constexpr, QUERY_COPIES: tl.constexpr, HIDDEN: tl.constexpr,
    WINDOW: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add to the queries' gradients; write delta, grad_out times out of each row, with the strides of lse."""
    positions: tl.constexpr = ROWS // QUERY_COPIES
    key_positions: tl.constexpr = KEYS // HIDDEN
    begin = tl.program_id(0).to(tl.int64) * positions  # times a stride it may pass 2^31
    sample, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    group = head // GROUP
    row, column, dim = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, BLOCK_D)
    position, copy = begin + row // QUERY_COPIES, row % QUERY_COPIES
    row_ok = (row < positions * QUERY_COPIES) & (position < length)
    tile = row_ok[:, None] & (dim < D)[None, :]
    pos, cop, col = position[:, None], copy[:, None], dim[None, :]
    q_tile = tl.load(q + pos * qs + sample * qb + cop * qm + head * qh + col, tile, other=0.0)
    o_tile = tl.load(out + pos * os + sample * ob + cop * om + head * oh + col, tile, other=0.0)
    do_tile = tl.load(do + pos * ds + sample * db + cop * dm + head * dh + col, tile, other=0.0)
    row_delta = tl.sum(do_tile.to(tl.float32) * o_tile.to(tl.float32), 1)
    row_at = position * ls + sample * lb + copy * lm + head * lh
    tl.store(delta + row_at, row_delta, row_ok)
    top = tl.load(lse + row_at, row_ok, other=0.0)
    band = tl.load(start + position, row_ok, other=0)
    dq_at = dq + pos * gs + sample * gb + cop * gm + head * gh + col
    grad = tl.load(dq_at, tile, other=0.0).to(tl.float32)
    for key_begin in range(tl.load(start + begin), begin + positions, key_positions):
        key_position, key_copy = key_begin + column // HIDDEN, column % HIDDEN
        key_ok = (column < key_positions * HIDDEN) & (key_position >= first_key) & (key_position < length)
        key_tile = key_ok[:, None] & (dim < D)[None, :]
        at = (key_position - first_key)[:, None]
        keys = tl.load(
            k + at * ks + sample * kb + key_copy[:, None] * kc + group * kg + col, key_tile, other=0.0
        )
        values = tl.load(
            v + at * vs + sample * vb + key_copy[:, None] * vc + group * vg + col, key_tile, other=0.0
        )
        scores = tl.dot(q_tile, tl.trans(keys), input_precision="ieee") * scale
        seen = _visible(position, HIDDEN - QUERY_COPIES + copy, key_position, key_copy, band, row_ok, key_ok)
        share = tl.where(seen, tl.exp(scores - top[:, None]), 0.0)
        grad_share = tl.dot(do_tile, tl.trans(values), input_precision="ieee")
        grad_scores = share * (grad_share - row_delta[:, None]) * scale
        grad += tl.dot(grad_scores.to(keys.dtype), keys, input_precision="ieee")
    tl.store(dq_at, grad.to(dq.dtype.element_ty), tile)


@triton.jit
def _key_kernel(
    q, k, v, start, lse, delta, do, dk, dv,
    length, first_key, scale,
    qs, qb, qm, qh, ks, kb, kc, kg, vs, vb, vc, vg, ls, lb, lm, lh, ds, db, dm, dh, gs, gb, gc, gg,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, QUERY_COPIES: tl.constexpr, HIDDEN: tl.constexpr,
    WINDOW: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the hidden keys' and values' gradients; each program has its keys to itself."""
    positions: tl.constexpr = ROWS // QUERY_COPIES
    key_positions: tl.constexpr = KEYS // HIDDEN
    key_begin = first_key + tl.program_id(0).to(tl.int64) * key_positions
    key_end = key_begin + key_positions
    sample, group = tl.program_id(1) // GROUPS, tl.program_id(1) % GROUPS
    row, column, dim = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, BLOCK_D)
    key_position, key_copy = key_begin + column // HIDDEN, column % HIDDEN
    key_ok = (column < key_positions * HIDDEN) & (key_position < length)
    key_tile = key_ok[:, None] & (dim < D)[None, :]
    at, key_cop, col = (key_position - first_key)[:, None], key_copy[:, None], dim[None, :]
    keys = tl.load(k + at * ks + sample * kb + key_cop * kc + group * kg + col, key_tile, other=0.0)
    values = tl.load(v + at * vs + sample * vb + key_cop * vc + group * vg + col, key_tile, other=0.0)
    grad_keys = tl.zeros([KEYS, BLOCK_D], tl.float32)
    grad_values = tl.zeros([KEYS, BLOCK_D], tl.float32)
    for member in range(GROUP):
        head = group * GROUP + member
        for begin in range(key_begin, key_end + WINDOW - 1, positions):
            # halo keys may lie before the first row
            if tl.load(start + tl.maximum(begin, 0), begin < length, other=key_end) < key_end:
                position, copy = begin + row // QUERY_COPIES, row % QUERY_COPIES
                row_ok = (row < positions * QUERY_COPIES) & (position >= 0) & (position < length)
                tile = row_ok[:, None] & (dim < D)[None, :]
                pos, cop = position[:, None], copy[:, None]
                q_tile = tl.load(q + pos * qs + sample * qb + cop * qm + head * qh + col, tile, other=0.0)
                do_tile = tl.load(do + pos * ds + sample * db + cop * dm + head * dh + col, tile, other=0.0)
                row_at = position * ls + sample * lb + copy * lm + head * lh
                top = tl.load(lse + row_at, row_ok, other=0.0)
                row_delta = tl.load(delta + row_at, row_ok, other=0.0)
                band = tl.load(start + position, row_ok, other=0)
                scores = tl.dot(q_tile, tl.trans(keys), input_precision="ieee") * scale
                query_copy = HIDDEN - QUERY_COPIES + copy
                seen = _visible(position, query_copy, key_position, key_copy, band, row_ok, key_ok)
                share = tl.where(seen, tl.exp(scores - top[:, None]), 0.0)
                grad_share = tl.dot(do_tile, tl.trans(values), input_precision="ieee")
                grad_scores = share * (grad_share - row_delta[:, None]) * scale
                grad_values += tl.dot(tl.trans(share.to(do_tile.dtype)), do_tile, input_precision="ieee")
                grad_keys += tl.dot(tl.trans(grad_scores.to(q_tile.dtype)), q_tile, input_precision="ieee")
    grad_at = at * gs + sample * gb + key_cop * gc + group * gg + col
    tl.store(dk + grad_at, grad_keys.to(dk.dtype.element_ty), key_tile)
    tl.store(dv + grad_at, grad_values.to(dv.dtype.element_ty), key_tile)


def fits(hidden: int, dim: int) -> bool:
    """Whether the tiles of so many hidden copies and head dimensions leave room in a block's shared memory
    (163 KB on an A100, 227 KB on Hopper).
    """
    return _tile(hidden) <= 64 and _tile(hidden) * triton.next_power_of_2(dim) <= 64 * 128


def _tile(copies: int) -> int:
    """Rows of a tile: tl.dot takes powers of two; whole positions lie in it."""
    return max(32, triton.next_power_of_2(copies))


class TritonBand:
    """``phd.attention.band.Band`` in Triton; arguments and methods as there, ``lse`` in fp32."""

    def __init__(self, query: Tensor, hidden: int, start: Tensor, window: int, scale: float) -> None:
        self.length, self.samples, self.query_copies, self.heads, self.dim = query.shape
        self.hidden, self.window, self.scale = hidden, window, scale
        self.start = start.contiguous()
        self.rows, self.keys = _tile(self.query_copies), _tile(hidden)

    def merge(
        self, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor, halo: Tensor | None = None
    ) -> None:
        key, value, first_key = self._with_halo(key, value, halo)
        grid = (triton.cdiv(self.length, self.rows // self.query_copies), self.samples * self.heads)
        with torch.cuda.device_of(query):  # Triton launches on the current GPU
            _forward_kernel[grid](
                query, key, value, self.start, out, lse, self.length, first_key, self.scale,
                *_strides(query, key, value, out), *lse.stride(), HEADS=self.heads, **self._sizes(key),
            )  # fmt: skip

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
        key, value, first_key = self._with_halo(key, value, halo)
        grads = grad_keys if halo is None else key.new_empty((2, *key.shape))
        # with the strides of a slice of all copies, as lse has them
        delta = torch.empty_strided(lse.shape, lse.stride(), dtype=lse.dtype, device=lse.device)
        numbers = self.length, first_key, self.scale
        blocks = triton.cdiv(self.length, self.rows // self.query_copies)
        key_blocks = triton.cdiv(self.length - first_key, self.keys // self.hidden)
        groups = key.shape[3]
        with torch.cuda.device_of(query):
            _query_kernel[(blocks, self.samples * self.heads)](
                query, key, value, self.start, out, lse, grad_out, grad_query, delta, *numbers,
                *_strides(query, key, value, out), *lse.stride(), *_strides(grad_out, grad_query),
                HEADS=self.heads, **self._sizes(key),
            )  # fmt: skip
            # one stage: tiles of queries loaded ahead are more than its registers hold beside two sums
            _key_kernel[(key_blocks, self.samples * groups)](
                query, key, value, self.start, lse, delta, grad_out, *grads, *numbers,
                *_strides(query, key, value), *lse.stride(), *_strides(grad_out, grads[0]),
                GROUPS=groups, num_stages=1, **self._sizes(key),
            )  # fmt: skip
        if grad_halo is not None:
            grad_halo.copy_(grads[:, : self.window - 1])
            grad_keys.copy_(grads[:, self.window - 1 :])

    def _with_halo(self, key: Tensor, value: Tensor, halo: Tensor | None) -> tuple[Tensor, Tensor, int]:
        """Keys, values and the position of their first row."""
        if halo is None:
            return key, value, 0
        return torch.cat((halo[0], key)), torch.cat((halo[1], value)), 1 - self.window

    def _sizes(self, key: Tensor) -> dict[str, int]:
        return {
            "GROUP": self.heads // key.shape[3],
            "QUERY_COPIES": self.query_copies,
            "HIDDEN": self.hidden,
            "WINDOW": self.window,
            "D": self.dim,
            "ROWS": self.rows,
            "KEYS": self.keys,
            "BLOCK_D": max(16, triton.next_power_of_2(self.dim)),
        }


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of all dimensions but the last, which is contiguous."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:4])

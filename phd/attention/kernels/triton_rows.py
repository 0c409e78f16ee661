"""Attention of an inference step's rows, in Triton: over the cache's originals and the hidden tokens, all
read where they lie. The rule is computed from columns, so there are no masks, no copies of keys, and nothing
that the host has to know of the length: a CUDA graph of a step is right at every length.

Keys are divided among programs, as in flash decoding, and a second kernel merges their softmaxes; the same
takes the step's hidden tokens into a static cache's ring, which nobody reads any more by then. No gradients.

Tested under Triton's interpreter and compiled for Hopper in CI; never run on a GPU.

Legend: b samples, h query heads, g key/value heads, d head dimension, K copies, H = K - 1, t columns of
originals, r the last columns, n of whose copies are rows each (the last n, so all K or H).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_keys(queries, keys, values, seen, scale, top, total, weighted):
    """A step of an online softmax in powers of 2; the score of an unseen key is minus infinity."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that has seen nothing yet
    shrink = tl.exp2(top - base)
    share = tl.exp2(scores - base[:, None])
    weighted = weighted * shrink[:, None]
    weighted += tl.dot(share.to(values.dtype), values, input_precision="ieee")
    return new_top, total * shrink + tl.sum(share, 1), weighted


@triton.jit
def _load_rows(at, row_stride, rows, ok, BLOCK_D: tl.constexpr, D: tl.constexpr):
    dim = tl.arange(0, BLOCK_D)
    return tl.load(
        at + rows[:, None] * row_stride + dim[None, :], ok[:, None] & (dim < D)[None, :], other=0.0
    )


@triton.jit(do_not_specialize=["length", "tokens", "columns", "hidden_columns", "splits", "samples"])
def _split_kernel(
    q, k, v, hidden_k, hidden_v, ring_k, ring_v, end, padding, part_out, part_lse,
    length, tokens, columns, hidden_columns, splits, samples, scale,
    qb, qh, qr, kb, kg, kr, vb, vg, vr, hkb, hkg, hkr, hvb, hvg, hvr, rkb, rkg, rkr, rvb, rvg, rvr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, QUERY_COPIES: tl.constexpr, HIDDEN: tl.constexpr,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, RING: tl.constexpr, END: tl.constexpr, PADDED: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    block, split = tl.program_id(0), tl.program_id(2)
    sample, group = (tl.program_id(1) // GROUPS).to(tl.int64), tl.program_id(1) % GROUPS
    if END:
        length = tl.load(end)
    first = length - columns
    pad = tl.load(padding + sample) if PADDED else 0

    # rows: the heads of a group, then the copies of a column, then the columns
    row = block * ROWS + tl.arange(0, ROWS)
    token, head = row // GROUP, group * GROUP + row % GROUP
    row_ok = token < tokens
    column, copy = first + token // QUERY_COPIES, HIDDEN + 1 - QUERY_COPIES + token % QUERY_COPIES
    earliest = first + block * ROWS // GROUP // QUERY_COPIES
    latest = first + tl.minimum((block * ROWS + ROWS - 1) // GROUP, tokens - 1) // QUERY_COPIES
    band = tl.maximum(column - (WINDOW - 1), pad)
    if CHUNK:
        band = tl.maximum(band, column - (column - pad) % CHUNK)

    dim = tl.arange(0, BLOCK_D)
    queries = tl.load(
        q + sample * qb + head[:, None] * qh + token[:, None] * qr + dim[None, :],
        row_ok[:, None] & (dim < D)[None, :],
        other=0.0,
    )
    scale = scale * 1.4426950408889634  # the exponentials are of 2

    # tiles of keys: originals, the ring's hidden copies, this step's; this program has some adjacent ones
    originals = tl.cdiv(latest + 1, KEYS)
    in_ring = tl.cdiv(RING * HIDDEN, KEYS)
    hidden_first = length - hidden_columns
    from_row = tl.maximum(earliest - (WINDOW - 1) - hidden_first, 0) * HIDDEN
    to_row = (latest + 1 - hidden_first) * HIDDEN
    in_order = tl.cdiv(to_row - from_row, KEYS)
    each = tl.cdiv(originals + in_ring + in_order, splits)
    begin = split * each
    stop = begin + each

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, BLOCK_D], tl.float32)
    k += sample * kb + group * kg
    v += sample * vb + group * vg
    for tile in range(begin, tl.minimum(stop, originals)):
        key_column = tile * KEYS + tl.arange(0, KEYS)
        ok = key_column <= latest
        keys = _load_rows(k, kr, key_column.to(tl.int64), ok, BLOCK_D, D)
        values = _load_rows(v, vr, key_column.to(tl.int64), ok, BLOCK_D, D)
        seen = (key_column[None, :] <= column[:, None]) & (key_column >= pad)[None, :] & row_ok[:, None]
        top, total, weighted = _add_keys(queries, keys, values, seen, scale, top, total, weighted)
    if RING:
        ring_k += sample * rkb + group * rkg
        ring_v += sample * rvb + group * rvg
        for tile in range(tl.maximum(begin - originals, 0), tl.minimum(stop - originals, in_ring)):
            key_row = tile * KEYS + tl.arange(0, KEYS)
            ok = key_row < RING * HIDDEN
            # the ring slot holds the last column before this step's first that is stored in it
            key_column = first - 1 - (first - 1 - key_row // HIDDEN + RING) % RING
            keys = _load_rows(ring_k, rkr, key_row, ok, BLOCK_D, D)
            values = _load_rows(ring_v, rvr, key_row, ok, BLOCK_D, D)
            seen = (
                (key_column[None, :] >= band[:, None]) & (copy > 0)[:, None] & ok[None, :] & row_ok[:, None]
            )
            top, total, weighted = _add_keys(queries, keys, values, seen, scale, top, total, weighted)
    if HIDDEN:
        hidden_k += sample * hkb + group * hkg
        hidden_v += sample * hvb + group * hvg
        before = originals + in_ring
        for tile in range(tl.maximum(begin - before, 0), tl.minimum(stop - before, in_order)):
            key_row = from_row + tile * KEYS + tl.arange(0, KEYS)
            ok = key_row < to_row
            key_column, key_copy = hidden_first + key_row // HIDDEN, 1 + key_row % HIDDEN
            keys = _load_rows(hidden_k, hkr, key_row, ok, BLOCK_D, D)
            values = _load_rows(hidden_v, hvr, key_row, ok, BLOCK_D, D)
            earlier = (key_column[None, :] < column[:, None]) & (copy > 0)[:, None]
            own = (key_column[None, :] == column[:, None]) & (key_copy[None, :] <= copy[:, None])
            seen = (key_column[None, :] >= band[:, None]) & (earlier | own) & ok[None, :] & row_ok[:, None]
            top, total, weighted = _add_keys(queries, keys, values, seen, scale, top, total, weighted)

    heads = GROUPS * GROUP
    at = ((split * samples + sample) * heads + head) * tokens + token
    part = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(part_out + at[:, None] * D + dim[None, :], part, row_ok[:, None] & (dim < D)[None, :])
    tl.store(part_lse + at, top + tl.log2(total), row_ok)


@triton.jit(do_not_specialize=["tokens", "splits", "count", "hidden_count"])
def _merge_kernel(
    part_out, part_lse, out, hidden_k, hidden_v, ring_k, ring_v, end,
    tokens, splits, count, hidden_count,
    hkb, hkg, hkr, hvb, hvg, hvr, rkb, rkg, rkr, rvb, rvg, rvr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, HIDDEN: tl.constexpr, RING: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, BLOCK_D)
    row_ok = row < count
    top = tl.full([ROWS], float("-inf"), tl.float32)
    for split in range(splits):
        top = tl.maximum(top, tl.load(part_lse + split * count + row, row_ok, other=float("-inf")))
    top = tl.where(top == float("-inf"), 0.0, top)  # padding sees nothing, and gets zeros
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for split in range(splits):
        at = split * count + row
        share = tl.exp2(tl.load(part_lse + at, row_ok, other=float("-inf")) - top)
        total += share
        weighted += share[:, None] * _load_rows(part_out, D, at, row_ok, BLOCK_D, D)
    # [b, h, rows, d] -> [b, rows, h, d]
    heads = GROUPS * GROUP
    sample, head, token = row // tokens // heads, row // tokens % heads, row % tokens
    to = out + ((sample * tokens + token) * heads + head)[:, None] * D + dim[None, :]
    weighted = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(to, weighted.to(out.dtype.element_ty), row_ok[:, None] & (dim < D)[None, :])
    if RING:
        # there are fewer hidden copies than rows: each program stores some of them as well
        ok = row < hidden_count
        sample, group, copy = row // HIDDEN // GROUPS, row // HIDDEN % GROUPS, row % HIDDEN
        slot = (tl.load(end) - 1) % RING * HIDDEN + copy
        mask = ok[:, None] & (dim < D)[None, :]
        at = (sample * hkb + group * hkg + copy * hkr)[:, None] + dim[None, :]
        to = (sample * rkb + group * rkg + slot * rkr)[:, None] + dim[None, :]
        tl.store(ring_k + to, tl.load(hidden_k + at, mask), mask)
        at = (sample * hvb + group * hvg + copy * hvr)[:, None] + dim[None, :]
        to = (sample * rvb + group * rvg + slot * rvr)[:, None] + dim[None, :]
        tl.store(ring_v + to, tl.load(hidden_v + at, mask), mask)


# opaque to torch.compile, which would trace the launches, and break the graph where they choose a GPU
@torch.library.custom_op("phd::attend_rows", mutates_args=("ring_key", "ring_value"))
def attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hidden_key: Tensor,
    hidden_value: Tensor,
    ring_key: Tensor,
    ring_value: Tensor,
    end: Tensor | None,
    padding: Tensor | None,
    *,
    length: int,
    columns: int,
    copies: int,
    window: int,
    chunk: int | None,
    scale: float,
    programs: int = 2 * 132,
) -> Tensor:
    """Softmax attention of the last ``columns`` columns' copies, under the rule.

    Args:
        query: [b, h, r*n, d], columns, and in each of them its last n copies, in order.
        key, value: originals [b, g, t, d]; what lies behind the last column is not read.
        hidden_key, hidden_value: [b, g, m*H, d], of the last m columns; empty for K = 1.
        ring_key, ring_value: [b, g, R*H, d] with R = W - 1, the columns before the last, which is then the
            one new column: column c in slot c mod R. It replaces the oldest. Empty where there is no ring.
        end: columns in all, on the device: one int64. Needed with a ring; None: ``length`` says it.
        padding: [b] int64, columns before each sample's first token.
        programs: into how many to divide the work, at the least; twice an H100's multiprocessors.

    Returns:
        [b, r*n, h, d]; zeros for padding. All inputs have d contiguous.
    """
    samples, heads, tokens, dim = query.shape
    groups, hidden = key.shape[1], copies - 1
    query_copies = tokens // columns
    hidden_columns = hidden_key.shape[2] // hidden if hidden else 0
    block_d = max(16, triton.next_power_of_2(dim))
    keys = max(16, min(64, 16384 // (block_d * query.element_size())))
    rows = min(64, max(16, triton.next_power_of_2(tokens * heads // groups)))
    blocks = triton.cdiv(tokens * heads // groups, rows)
    ring = window - 1 if ring_key.shape[2] else 0
    most = triton.cdiv(key.shape[2] + ring_key.shape[2] + hidden_key.shape[2], 2 * keys)
    splits = max(1, min(triton.cdiv(programs, samples * groups * blocks), most))
    part_out = query.new_empty((splits, samples, heads, tokens, dim), dtype=torch.float32)
    part_lse = query.new_empty((splits, samples, heads, tokens), dtype=torch.float32)
    out = query.new_empty((samples, tokens, heads, dim))
    lying = *_strides(hidden_key, hidden_value), *_strides(ring_key, ring_value)
    count, merged = samples * heads * tokens, 16
    with torch.cuda.device_of(query):  # Triton launches on the current GPU
        _split_kernel[(blocks, samples * groups, splits)](
            query, key, value, hidden_key, hidden_value, ring_key, ring_value, end, padding,
            part_out, part_lse, length, tokens, columns, hidden_columns, splits, samples, scale,
            *_strides(query, key, value), *lying,
            GROUPS=groups, GROUP=heads // groups, QUERY_COPIES=query_copies, HIDDEN=hidden, WINDOW=window,
            CHUNK=chunk or 0, RING=ring, END=end is not None, PADDED=padding is not None,
            D=dim, ROWS=rows, KEYS=keys, BLOCK_D=block_d,
        )  # fmt: skip
        _merge_kernel[(triton.cdiv(count, merged),)](
            part_out, part_lse, out, hidden_key, hidden_value, ring_key, ring_value, end,
            tokens, splits, count, samples * groups * hidden, *lying,
            GROUPS=groups, GROUP=heads // groups, HIDDEN=hidden, RING=ring,
            D=dim, ROWS=merged, BLOCK_D=block_d,
        )  # fmt: skip
    return out


@attend_rows.register_fake
def _(query: Tensor, *others: Tensor | None, **rule: object) -> Tensor:
    samples, heads, tokens, dim = query.shape
    return query.new_empty((samples, tokens, heads, dim))


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of all dimensions but the last, which is contiguous."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])

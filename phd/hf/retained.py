"""Which originals a sparse layer's cache retains, and in which rows of its keys.

First the global blocks (``Blocks.global_blocks``), a row for each of their positions; then every slot from
``start`` on. Each slot is stored once: a global row stays empty while its slot is still in the local window.
Samples' blocks begin at their first tokens, so that with left padding the same row is another slot in each.

Legend: b samples, g key/value heads, n rows, d head dimension.
"""

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from phd.hf.padding import Padding
from phd.rules.keys import Blocks


@dataclass(frozen=True)
class Retained:
    """``global_rows`` rows of global blocks, then one for each slot from ``start`` on."""

    global_rows: int = 0
    start: int = 0


def retained_for(keys: Blocks, slot: int, padding: Padding) -> Retained:
    """The least that queries from ``slot`` on need of the slots before."""
    pads = padding.distinct
    start = min(slot, *(pad + keys.window_start(slot - pad) for pad in pads))
    # of the last block only a part may be evicted; most is evicted in the sample with the least padding
    blocks = max(0, -(-(start - min(pads)) // keys.block))
    return Retained(keys.block * len([*keys.global_blocks(blocks)]), start)


def first_recoverable_slot(keys: Blocks, retained: Retained, padding: Padding) -> int:
    """The first slot from which on queries find all they see in what is retained."""
    first = retained.start
    for pad in padding.distinct:
        if retained.start > pad:
            blocks = -(-(retained.start - pad) // keys.block)
            first = max(first, pad + (blocks + keys.local - 1) * keys.block)
    return first


def slots_of(
    keys: Blocks, retained: Retained, end: int, padding: Padding, device: torch.device | None
) -> Tensor:
    """The slot in each row, up to ``end``; -1 where it is empty. [n], or [b, n] with padding."""
    count = retained.global_rows // keys.block
    blocks = torch.tensor([*islice(keys.global_blocks(end), count)], device=device)
    old = (blocks[:, None] * keys.block + torch.arange(keys.block, device=device)).flatten().long()
    recent = torch.arange(retained.start, end, device=device)
    if padding.counts is not None:
        old = old + padding.counts[:, None]
        recent = recent.expand(len(old), -1)
    return torch.cat([old.where(old < retained.start, -1), recent], dim=-1)


def gather_index(slots: Tensor, held: Retained, end: int) -> Tensor:
    """The rows of ``slots`` (of ``slots_of``) among those of ``held``, which go up to ``end``. Global blocks
    stay where they are.
    """
    row = torch.arange(slots.shape[-1], device=slots.device)
    index = torch.where(slots < held.start, row, slots - held.start + held.global_rows)
    return index.clamp(max=held.global_rows + end - held.start - 1)  # an empty row holds no slot


def gather(rows: Tensor, index: Tensor) -> Tensor:
    """Copies of rows ``index`` ([n] or [b, n]) of [b, g, t, d]."""
    if index.dim() == 1:
        return rows.index_select(2, index)
    return rows.gather(2, index[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))

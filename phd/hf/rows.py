"""Which originals a sparse layer's keys hold, and in which rows.

First the far blocks (``Pattern.far_blocks``), a row for each of their positions; then every column from
``start`` on. A column is in one place: a far row whose column has not yet left the recent ones is empty.
Samples' blocks begin at their first tokens, so that with left padding the same row is another column in each.

Legend: b samples, g key/value heads, n rows, d head dimension.
"""

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from phd.attention.pattern import Pattern
from phd.hf.padding import Padding


@dataclass(frozen=True)
class Rows:
    """``far`` rows of far blocks, then one for each column from ``start`` on."""

    far: int = 0
    start: int = 0


def rows_for(pattern: Pattern, column: int, padding: Padding) -> Rows:
    """The least that queries from ``column`` on need of the columns before."""
    pads = padding.distinct
    start = min(column, *(pad + pattern.window_start(column - pad) for pad in pads))
    # of the last block only a part may have left; of the sample with the least padding the most has
    blocks = max(0, -(-(start - min(pads)) // pattern.block))
    return Rows(pattern.block * len([*pattern.far_blocks(blocks)]), start)


def least_column(pattern: Pattern, rows: Rows, padding: Padding) -> int:
    """The first column from which on queries find in ``rows`` all they see."""
    least = rows.start
    for pad in padding.distinct:
        if rows.start > pad:
            blocks = -(-(rows.start - pad) // pattern.block)
            least = max(least, pad + (blocks + pattern.local - 1) * pattern.block)
    return least


def columns_of(
    pattern: Pattern, rows: Rows, end: int, padding: Padding, device: torch.device | None
) -> Tensor:
    """The column in each row, up to ``end``; -1 where it is empty. [n], or [b, n] with padding."""
    blocks = torch.tensor([*islice(pattern.far_blocks(end), rows.far // pattern.block)], device=device)
    far = (blocks[:, None] * pattern.block + torch.arange(pattern.block, device=device)).flatten().long()
    recent = torch.arange(rows.start, end, device=device)
    if padding.columns is not None:
        far = far + padding.columns[:, None]
        recent = recent.expand(len(far), -1)
    return torch.cat([far.where(far < rows.start, -1), recent], dim=-1)


def places(wanted: Tensor, held: Rows, end: int) -> Tensor:
    """Where the columns ``wanted`` (of ``columns_of``) lie among the rows ``held``, which go up to ``end``.
    Far blocks stay where they are.
    """
    row = torch.arange(wanted.shape[-1], device=wanted.device)
    index = torch.where(wanted < held.start, row, wanted - held.start + held.far)
    return index.clamp(max=held.far + end - held.start - 1)  # an empty row is nobody's


def take(keys: Tensor, index: Tensor) -> Tensor:
    """Copies of rows ``index`` ([n] or [b, n]) of [b, g, t, d]."""
    if index.dim() == 1:
        return keys.index_select(2, index)
    return keys.gather(2, index[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3]))

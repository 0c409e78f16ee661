"""Key/value heads of a layer by what they keep: heads of one rule are computed and cached together, wherever
they stand among the others. So weights stay in the order in which they were trained.

Legend: b samples, g key/value heads, a query heads.
"""

import torch
from torch import Tensor

from phd.attention.memo import made_once
from phd.rules.keys import Keys

Heads = tuple[int, ...]
"""Numbers of key/value heads, in order."""


def by_rule(keys: Keys) -> list[tuple[Heads, Keys]]:
    """The heads of each rule that a rule by head has."""
    heads: dict[Keys, list[int]] = {}
    for where, rule in keys.by_head():
        heads.setdefault(rule, []).extend(range(where.start, where.stop))
    return [(tuple(numbers), rule) for rule, numbers in heads.items()]


def select(x: Tensor, heads: Heads, each: int = 1) -> Tensor:
    """Of [b, g * each, ...] those of some key/value heads, which have ``each`` in a row: a view where they
    stand side by side.
    """
    first = heads[0]
    if heads == tuple(range(first, first + len(heads))):
        return x[:, first * each : (first + len(heads)) * each]
    return x.index_select(1, _rows(heads, each, x.device))


def join(parts: list[Tensor], heads: list[Heads]) -> Tensor:
    """Inverse of ``select`` for all heads of a layer, on the third axis: [b, rows, a of the heads, ...] ->
    [b, rows, a, ...].
    """
    whole = torch.cat(parts, dim=2)
    order = [head for some in heads for head in some]
    if order == sorted(order):
        return whole
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return whole.index_select(2, _rows(back, whole.shape[2] // len(order), whole.device))


@made_once(maxsize=256)
def _rows(heads: Heads, each: int, device: torch.device) -> Tensor:
    return torch.tensor([head * each + i for head in heads for i in range(each)], device=device)

"""Key/value heads of a layer by what they keep: heads of one rule are computed together, and cached together,
wherever they stand among the others. So weights stay in the order in which they were trained.
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


def places(heads: Heads, device: torch.device, each: int = 1) -> slice | Tensor:
    """Where an axis of g * ``each`` has some key/value heads, which have ``each`` in a row: a slice, which
    makes views, where they stand side by side; else indices.
    """
    first = heads[0]
    if heads == tuple(range(first, first + len(heads))):
        return slice(first * each, (first + len(heads)) * each)
    return _indices(heads, each, device)


@made_once(maxsize=256)
def _indices(heads: Heads, each: int, device: torch.device) -> Tensor:
    return torch.tensor([head * each + i for head in heads for i in range(each)], device=device)

"""What a sparse layer's cache retains is what the rule keeps for the slots to come."""

import pytest
import torch

from phd.hf.padding import Padding
from phd.hf.retained import Retained, first_recoverable_slot, retained_for, slots_of
from phd.rules.keys import Blocks

SINK, STRIDE, BOTH = [4, 1, 2, None], [4, 0, 1, 3], [4, 1, 2, 3]


@pytest.mark.parametrize("numbers", [SINK, STRIDE, BOTH, [1, 2, 3, 2], [5, 3, 2, 2], [4, 1, 2, 1]])
@pytest.mark.parametrize("pads", [(0,), (0, 3), (2, 9, 9)])
def test_what_is_retained_is_what_the_rule_keeps(numbers, pads):
    """Before every slot, each slot that it sees is retained in one row, and, without padding, no other is.
    Evicted slots do not come back.
    """
    kept = Blocks(*numbers)
    padding = Padding(None if pads == (0,) else torch.tensor(pads), tuple(sorted(set(pads))))
    evicted: list[set[int]] = [set() for _ in pads]
    for slot in range(1, 60):
        retained = retained_for(kept, slot, padding)
        rows = slots_of(kept, retained, slot, padding, None).expand(len(pads), -1)
        for sample, (row, pad) in enumerate(zip(rows, pads, strict=True)):
            slots = [x for x in row.tolist() if x >= 0]
            assert len(set(slots)) == len(slots)
            keys = torch.arange(pad, max(pad, slot)) - pad
            seen = {x + pad for x in keys[kept.keeps(slot - pad, keys)].tolist()}
            assert seen <= set(slots)
            if pads == (0,):
                assert seen == set(slots)
                assert len(slots) == retained.global_rows + slot - retained.start
                assert len(slots) == sum(map(len, kept.retained(slot)))
            assert not seen & evicted[sample]
            evicted[sample] |= set(range(slot)) - set(slots)


@pytest.mark.parametrize("numbers", [SINK, STRIDE, [1, 2, 3, 2]])
@pytest.mark.parametrize("pads", [(0,), (0, 3), (2, 9)])
def test_how_far_back_retained_originals_serve(numbers, pads):
    kept, padding = Blocks(*numbers), Padding(torch.tensor(pads), pads)
    for slot in range(1, 40):
        retained = retained_for(kept, slot, padding)
        serve = [x for x in range(slot + 1) if retained_for(kept, x, padding).start >= retained.start]
        assert first_recoverable_slot(kept, retained, padding) == serve[0]
    assert first_recoverable_slot(kept, Retained(), padding) == 0

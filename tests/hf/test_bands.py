"""From where on a step needs hidden copies, against the rule."""

import pytest
import torch

from phd.hf.bands import band_start, first_needed
from phd.hf.padding import UNPADDED, Padding
from phd.rules.copies import Copies
from phd.rules.rule import AttentionRule

LAYERS = 3


def first_seen(copies: Copies, slot: int, pad: int) -> int:
    """First slot whose hidden copies those of ``slot`` see, in a sample with so much padding."""
    keys = torch.arange(pad, slot + 1) - pad
    seen = AttentionRule(copies).sees(slot - pad, 1, keys, 1)
    return pad + int(keys[seen].min())


@pytest.mark.parametrize(("window", "chunk"), [(1, None), (5, None), (5, 12), (16, 32), (4, 4), (1, 3)])
def test_starts_are_the_rules(window, chunk):
    copies = Copies(2, window, chunk)
    padding = Padding(torch.tensor([0, 3]), (0, 3))
    for slot in range(70):
        assert band_start(copies, slot, UNPADDED) == first_seen(copies, slot, 0)
        if slot >= 3:
            both = min(first_seen(copies, slot, pad) for pad in padding.distinct)
            assert band_start(copies, slot, padding) == both
        reach = slot
        for _ in range(LAYERS):
            reach = first_seen(copies, reach, 0)
        assert first_needed(copies, LAYERS, slot, UNPADDED) == reach

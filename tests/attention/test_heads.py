"""Heads of one rule are computed together, wherever they stand."""

import torch

from phd.attention.heads import by_rule, places
from phd.rules.keys import Blocks, Full, parse_keys


def test_by_rule():
    keys = parse_keys("heads.1full.2sink.1full.1sink.1.2.7.1sink")
    assert by_rule(keys) == [((0, 3), Full()), ((1, 2, 5), Blocks()), ((4,), Blocks(1, 2, 7))]


def test_places():
    """Three query heads of each key/value head; a slice where heads stand side by side."""
    device = torch.device("cpu")
    assert places((1, 2), device) == slice(1, 3) and places((2,), device, 3) == slice(6, 9)
    assert places((0, 1, 2), device, 3) == slice(0, 9)
    assert places((0, 2), device, 3).tolist() == [0, 1, 2, 6, 7, 8]
    assert places((1, 3), device).tolist() == [1, 3]

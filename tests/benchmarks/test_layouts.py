"""The ways of laying out the copies give the same numbers, or comparing their times would mean nothing."""

import pytest
import torch

from benchmarks.gpu.layouts import WAYS, random_inputs
from tests.attention.calls import attend, rule_of


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("copies", "groups"), [(1, 2), (2, 6), (3, 2)])
def test_all_are_attention_over_the_originals(name, copies, groups):
    query, key, value, grad = (
        x.double() for x in random_inputs(37, copies, 6, groups, 16, torch.device("cpu"))
    )
    given = [x.requires_grad_() for x in (query, key, value)]
    keys = key[:, None], value[:, None]
    alone = [attend(query[:, [c]], *keys, rule_of(1)) for c in range(copies)]
    out = torch.cat(alone, dim=1)
    expected = (out, *torch.autograd.grad(out, given, grad))
    found = WAYS[name](*(x.detach() for x in given), grad)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a)

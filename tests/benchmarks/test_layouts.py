"""The ways of laying out the copies give the same numbers, or comparing their times would mean nothing."""

import pytest
import torch

from benchmarks.gpu.layouts import WAYS, random_inputs
from phd.attention import phd_attention


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("copies", "groups"), [(1, 2), (2, 6), (3, 2)])
def test_all_are_attention_over_the_originals(name, copies, groups):
    query, key, value, grad = (
        x.double() for x in random_inputs(37, copies, 6, groups, 16, torch.device("cpu"))
    )
    given = [x.requires_grad_() for x in (query, key, value)]
    keys = key[:, None], value[:, None]
    alone = [phd_attention(query[:, [c]], *keys, copies=1, window=1, chunk=None) for c in range(copies)]
    out = torch.cat(alone, dim=1)
    expected = (out, *torch.autograd.grad(out, given, grad))
    found = WAYS[name](*(x.detach() for x in given), grad)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a)

import math

import torch

from phd.attention.reference import masked_attention


def test_masked_attention_by_hand():
    """Query by query and key by key, with grouped heads, against sums written out."""
    length, samples, copies, heads, groups, dim, scale = 3, 2, 2, 4, 2, 3, 0.7
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(length, samples * copies, n, dim, dtype=torch.float64, generator=generator)
        for n in (heads, groups, groups)
    )
    mask = torch.rand(length, copies, length, copies, generator=generator) < 0.5
    mask |= torch.eye(length * copies, dtype=torch.bool).view_as(mask)
    context = masked_attention(query, key, value, mask, scale)
    for n, sample, j, head in torch.cartesian_prod(
        *map(torch.arange, (length, samples, copies, heads))
    ).tolist():
        group = head // (heads // groups)
        total, weighted = 0.0, torch.zeros(dim, dtype=torch.float64)
        for m, i in mask[n, j].nonzero().tolist():
            row = sample * copies + i
            weight = math.exp(scale * float(query[n, sample * copies + j, head] @ key[m, row, group]))
            total += weight
            weighted += weight * value[m, row, group]
        torch.testing.assert_close(context[n, sample * copies + j, head], weighted / total)

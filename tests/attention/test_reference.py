import math

import torch

from phd.attention.reference import masked_attention


def test_masked_attention_by_hand():
    """Query by query and key by key, with grouped heads, against sums written out."""
    length, samples, copies, heads, groups, dim, scale = 3, 2, 2, 4, 2, 3, 0.7
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(length, samples, copies, n, dim, dtype=torch.float64, generator=generator)
        for n in (heads, groups, groups)
    )
    mask = torch.rand(samples, length, copies, length, copies, generator=generator) < 0.5
    mask |= torch.eye(length * copies, dtype=torch.bool).view_as(mask[0])
    context = masked_attention(query, key, value, mask.unsqueeze(1), scale)
    for n, sample, j, head in torch.cartesian_prod(
        *map(torch.arange, (length, samples, copies, heads))
    ).tolist():
        group = head // (heads // groups)
        total, weighted = 0.0, torch.zeros(dim, dtype=torch.float64)
        for m, i in mask[sample, n, j].nonzero().tolist():
            weight = math.exp(scale * float(query[n, sample, j, head] @ key[m, sample, i, group]))
            total += weight
            weighted += weight * value[m, sample, i, group]
        torch.testing.assert_close(context[n, sample, j, head], weighted / total)

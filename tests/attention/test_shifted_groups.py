"""LongLoRA's shifted groups (arXiv 2309.12307): against its borders of groups in float64, and its costs."""

import pytest
import torch

from phd.rules.costs import Shape
from phd.rules.keys import ByHead, Groups, shifted_groups
from phd.rules.pattern import LayerPattern
from phd.rules.variant import Variant
from tests.attention.calls import attend, rule_of

LENGTH, GROUPS, HEADS, KV_HEADS, SIZE = 40, 4, 8, 4, 6
GROUP = LENGTH // GROUPS


def seen(length: int, group: int, starts: list[int], rolled: bool = False) -> torch.Tensor:
    """[heads, length, length]: who sees whom. Groups of each document have their borders at 0, G, 2 G, ... in
    the first half of the heads, at 0, G / 2, 3 G / 2, ... in the other. ``rolled`` is Algorithm 1's other
    half, whose last group goes on with the sample's first tokens.
    """
    halves = []
    for shift in (0, group // 2):
        mask = torch.zeros(length, length, dtype=torch.bool)
        for begin, end in zip(starts, [*starts[1:], length], strict=True):
            borders = sorted({begin, *range(begin + shift, end, group), end})
            for first, last in zip(borders, borders[1:], strict=False):
                mask[first:last, first:last] = torch.ones(last - first, last - first).tril().bool()
        if rolled and shift:
            order = torch.arange(length).roll(-shift)  # the tokens in the rolled sequence
            whole = torch.block_diag(*[torch.ones(group, group).tril()] * (length // group)).bool()
            mask = torch.zeros_like(mask)
            mask[order[:, None], order] = whole
        halves.append(mask)
    return torch.stack(halves).repeat_interleave(HEADS // 2, dim=0)


def dense(query, key, value, mask):
    """[s, b, h, d] and [s, b, g, d] -> [s, b, h, d]."""
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=2) for x in (key, value))
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) / SIZE**0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,kbhd->qbhd", weights, value)


def inputs():
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [torch.randn(LENGTH, 2, n, SIZE, dtype=torch.float64, generator=generator) for n in heads]


@pytest.mark.parametrize("starts", [[0], [0, 3, 16, 17]], ids=["one-document", "packed"])
def test_outputs_and_gradients_are_the_oracle_s(starts):
    """A document shorter than half a group is whole in both halves."""
    *qkv, grad = inputs()
    rule = rule_of(1, keys=shifted_groups(KV_HEADS, GROUP))
    documents = torch.tensor([max(s for s in starts if s <= i) for i in range(LENGTH)]).expand(2, -1)
    results = []
    for function in (
        lambda q, k, v: attend(q, k, v, rule, document_starts=None if starts == [0] else documents),
        lambda q, k, v: dense(q, k, v, seen(LENGTH, GROUP, starts)),
    ):
        tensors = [x.clone().requires_grad_() for x in qkv]
        out = function(*tensors)
        results.append([out, *torch.autograd.grad(out, tensors, grad)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_no_token_changes_what_comes_before_it():
    """The test fails for the paper's roll, in which the first tokens see the last ones."""
    query, key, value, _ = inputs()
    other = [x.clone() for x in (key, value)]
    for x in other:
        x[-1] += 1
    rule = rule_of(1, keys=shifted_groups(KV_HEADS, GROUP))
    ours = [attend(query, *x, rule)[:-1] for x in ((key, value), other)]
    assert torch.equal(*ours)
    rolled = [dense(query, *x, seen(LENGTH, GROUP, [0], rolled=True))[:-1] for x in ((key, value), other)]
    assert not torch.allclose(*rolled)


def test_costs_of_the_paper():
    """At 32768 tokens 0.2344 of causal attention's pairs; table 11 counts the whole squares, with a leak."""
    length, groups = 32768, 4
    keys = shifted_groups(32, length // groups)
    assert keys.pairs(length) / (length * (length + 1) / 2) == pytest.approx(0.2344, abs=5e-5)
    shape = Shape(
        hidden_size=4096, num_attention_heads=32, num_query_groups=32, kv_channels=128, vocab_size=32000,
        mlp_products=[3 * 4096 * 11008] * 32, lora_rank=8,
    )  # fmt: skip
    full = 4 * length**2 * shape.query_size * shape.num_layers
    for flops, printed in ((full, 562.9e12), (full / groups, 140.7e12)):
        assert flops == pytest.approx(printed, abs=0.06e12)
    # of forward and backward, those of attention alone: pairs, not squares
    variants = [Variant(), Variant(pattern=LayerPattern.of((keys,) * 32))]
    attention = [
        (variant.flops_per_token(shape, length) - variant.flops_per_token(shape, 1)) * length / 3
        for variant in variants
    ]
    assert attention[0] == pytest.approx(full / 2, rel=1e-3)
    assert attention[1] == pytest.approx(0.2344 * full / 2, rel=1e-3)
    # what trains
    assert shape.num_layers * sum(shape.adapters) == 8_388_608
    parameters = 32 * (4 * 4096**2 + shape.mlp_products[0] + 2 * 4096) + 2 * 32000 * 4096 + 4096
    assert f"{32000 * 4096 / parameters:.2%}" == "1.95%"
    assert f"{65 * 4096 / parameters:.3%}" == "0.004%"


def test_halves_are_of_all_heads():
    """And of heads and positions that have halves."""
    keys = shifted_groups(4, 6)
    assert keys == ByHead(((2, Groups(6)), (2, Groups(6, 3))))
    assert (keys.of_heads(0, 2), keys.of_heads(2, 4)) == (Groups(6), Groups(6, 3))
    for heads, size in ((3, 6), (4, 7)):
        with pytest.raises(ValueError, match="an even number of heads and positions, got"):
            shifted_groups(heads, size)

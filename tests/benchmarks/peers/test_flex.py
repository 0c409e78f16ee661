"""FlexAttention's outputs, all that torch offers of it on a CPU, and what its block mask leaves out."""

import pytest
import torch

from benchmarks.peers import flex
from phd.rules.keys import Blocks, ByHead, Full
from tests.attention.calls import attend, rule_of
from tests.attention.test_attention import VARIANTS, random_inputs
from tests.attention.test_gpu import assert_as_exact_as_bf16

CPU = torch.device("cpu")


HEADS = pytest.param(2, 4, 8, ByHead(((1, Full()), (1, Blocks(4, 1, 2)))), id="heads")


@pytest.mark.parametrize(
    ("copies", "window", "chunk", "keys"),
    [*(pytest.param(*each.values, Full(), id=each.id) for each in VARIANTS[::7]), HEADS],
)
def test_outputs_equal_the_reference(copies, window, chunk, keys):
    inputs = random_inputs(71, 2 * copies, dim=16, dtype=torch.float32)[:3]
    rule = rule_of(copies, window, chunk, keys)
    out = flex.flex_attention_of(*inputs, rule)
    expected = attend(*(x.double() for x in inputs), rule, backend="reference")
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_blocks_without_a_visible_pair_are_skipped():
    assert flex.block_mask(rule_of(2, 16, 32), 2048, 1, CPU).sparsity() > 45  # per cent: the future


def test_one_mask_serves_all_calls():
    assert flex.block_mask(rule_of(2, 4, 8), 71, 1, CPU) is flex.block_mask(rule_of(2, 4, 8), 71, 1, CPU)


def test_masks_are_made_block_by_block_on_cuda(monkeypatch):
    """Uncompiled, create_block_mask makes the whole square: no GPU has the memory."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: lambda *a, **k: compiled.append((f, k["device"])))
    monkeypatch.setattr(flex, "_compiled", flex._compiled.__wrapped__)
    flex.block_mask.__wrapped__(
        rule_of(2, 16, 32), 2048, 1, torch.device("cuda", 1)
    )  # a GPU that is not there
    assert compiled == [(flex.create_block_mask, "cuda:1")]


# few: each is compiled, forward and backward
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("copies", "rule", "shape"),
    [
        pytest.param(1, "PHD-SWA", {}, id="K1"),
        pytest.param(2, "PHD", {}, id="PHD"),
        pytest.param(3, "PHD-CSWA", {"dim": 128}, id="head-dimension-128"),
    ],
)
def test_as_exact_as_bf16_on_a_gpu(copies, rule, shape):
    torch.compiler.reset()  # or shapes that differ are compiled for any size
    assert_as_exact_as_bf16(copies, rule, attention=flex.flex_attention_of, **shape)

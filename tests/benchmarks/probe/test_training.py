"""A cell: reproducible, paired by seed, and able to learn; what an arm costs."""

import pytest
import torch

from benchmarks.probe.plan import ARMS, BASELINE, PROBES, as_json
from benchmarks.probe.tasks import windowed_parity
from benchmarks.probe.training import HELD_OUT_SEED, Arm, Recipe, train
from phd.rules.variant import Variant

TASK = windowed_parity(8, 2)


@pytest.mark.parametrize("variant", ["vanilla", "PHD-CSWA-2-16-32"])
def test_a_cell_learns(variant):
    recipe = Recipe(steps=150, samples=64, learning_rate=1e-2)
    assert train(Arm(variant=variant), TASK, recipe, seed=11)["accuracy"] > 0.95


@pytest.mark.parametrize("variant", ["vanilla", "PHD-CSWA-2-16-32+vector"])
def test_a_cell_follows_from_its_seed(variant):
    recipe = Recipe(steps=5, samples=8, learning_rate=1e-2)
    losses = [train(Arm(variant=variant), TASK, recipe, seed)["loss"] for seed in (11, 11, 12)]
    assert losses[0] == losses[1] != losses[2]


def test_arms_of_one_shape_begin_alike():
    """PHD's model has vanilla's weights, so a pair begins with the same."""
    weights = []
    for arm in (ARMS[BASELINE], ARMS["PHD-CSWA-2-16-32"]):
        torch.manual_seed(1)
        weights.append(arm.model(TASK).state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_learning_rate_rises_and_falls():
    shares = [Recipe(steps=100, samples=1, learning_rate=1).schedule(step) for step in range(100)]
    assert shares[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert shares[5:] == sorted(shares[5:], reverse=True) and 0 < shares[-1] < 0.001


def test_costs_are_the_arms():
    """Twice the depth doubles what is in layers; copies cost FLOPs and a few bytes; an identity, weights."""
    task = PROBES["hop"].task
    costs = {name: arm.costs(task) for name, arm in ARMS.items()}
    vanilla, phd = costs[BASELINE], costs["PHD-CSWA-2-16-32"]
    hidden = ARMS[BASELINE].hidden_size
    assert phd["parameters"] == vanilla["parameters"]
    assert costs["PHD-CSWA-2-16-32+vector"]["parameters"] == vanilla["parameters"] + hidden
    assert costs["PHD-CSWA-2-16-32+table"]["parameters"] == vanilla["parameters"] + hidden * task.vocabulary
    # a chunk's last position but one keeps all originals and the hidden copies of a window less one
    kept = {name: each["kv_bytes"] / (2 * hidden * 2 * 4) for name, each in costs.items()}
    assert kept[BASELINE] == 1 + task.length == 32
    assert kept["PHD-CSWA-2-16-32"] == 31 + 15
    assert kept["vanilla, twice the width"] == kept["vanilla, twice the depth"] == 64
    head = 6 * hidden * task.vocabulary  # of both, once
    deep = costs["vanilla, twice the depth"]["flops_per_token"] - head
    assert deep == pytest.approx(2 * (vanilla["flops_per_token"] - head))
    assert 1.9 < phd["flops_per_token"] / vanilla["flops_per_token"] < 2.1


def test_the_plan_is_what_was_asked_for():
    """An arm is called by its variant, or is vanilla of another shape; no seed is the held-out's."""
    plan = as_json()
    assert [arm["variant"] for arm in plan["arms"].values()].count("vanilla") == 3
    for name, arm in ARMS.items():
        assert name == arm.variant or name.startswith("vanilla, twice")
        Variant.parse(arm.variant)
    assert HELD_OUT_SEED not in plan["seeds"] and len({*plan["seeds"]}) == 5

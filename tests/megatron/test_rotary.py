"""Angles at positions that are data, against Megatron's own."""

import pytest

from tests.megatron.test_phd_model import batch, build
from tests.world import megatron_globals

ROPES = {
    "rope": "",
    "partial": "--rotary-percent 0.5",
    "interleaved": "--rotary-interleaved",
    "interpolated": "--rotary-seq-len-interpolation-factor 3",
    "llama-3": "--use-rope-scaling --rope-scaling-factor 4 --rotary-base 500000",
    "yarn": "--position-embedding-type yarn",
}
NAIVE = "--phd-copies 3 --phd-naive"


class Group:
    """What is asked of a process group."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def assert_exact(rotary, angles, positions) -> None:
    """``angles`` are fp32 and within 1e-6, around the circle, of the products in float64."""
    import math

    import torch

    frequencies = rotary.inv_freq.double() / (rotary.seq_len_interpolation_factor or 1)
    twice = frequencies.repeat_interleave(2) if rotary.rotary_interleaved else frequencies.repeat(2)
    apart = angles.double() - positions.T[..., None, None] * twice
    assert angles.dtype == torch.float32
    assert (torch.remainder(apart + math.pi, 2 * math.pi) - math.pi).abs().max() < 1e-6


def check_angles(flags: str) -> None:
    import torch

    from phd.megatron.rotary import angles_of_table, consecutive_positions, rotary_angles

    def alone(angles):
        return angles[0] if isinstance(angles, tuple) else angles

    some = torch.randint(120, (2, 40))
    rows = torch.arange(6)
    with megatron_globals():
        rotary = build(flags).rotary_pos_emb
        table = alone(rotary.get_emb(120))[:, 0]  # [positions, 1, d]
        for rank, size in ((0, 1), (0, 2), (1, 2), (3, 4)):
            rotary.cp_group = group = Group(rank, size)
            own = alone(rotary(40, cp_group=group))  # else it is the first group's, which is kept
            plain = angles_of_table(rotary, torch.arange(40).expand(2, -1), 40)
            assert plain.shape == (40 // size, 2, *own.shape[2:])
            assert torch.equal(plain, own.expand_as(plain))
            # which positions this rank has
            (positions,) = torch.where((own.flatten(1)[:, None] == table[:40, 0]).all(-1).any(0))
            angles = angles_of_table(rotary, some, 120)
            assert torch.equal(angles, table[some[:, positions].T])
            if "yarn" not in flags:
                assert torch.equal(rotary_angles(rotary, some), angles)
                sevenths = some.double() / 7
                assert_exact(rotary, rotary_angles(rotary, sevenths), sevenths[:, positions])
            copies = angles_of_table(rotary, consecutive_positions(40, 6, 3, some.device), 120)
            assert torch.equal(copies, table[3 * positions[:, None] + rows % 3])
        rotary.cp_group = None
        if "yarn" not in flags:
            last = torch.tensor([[131071.0, 131070.5]], dtype=torch.float64)
            assert_exact(rotary, rotary_angles(rotary, last), last)


@pytest.mark.parametrize("rope", ROPES)
def test_angles_are_megatrons_bit_for_bit(world, rope):
    """0, 1, 2, ... are its own, whichever rank has a part of them; and others are entries of its table."""
    world.run(check_angles, ROPES[rope])


def check_plain_positions(flags: str) -> None:
    from unittest.mock import patch

    import torch

    from phd.megatron import phd_model

    def plain(length: int, rows: int, copies: int, device):
        return torch.arange(length, device=device).expand(rows, -1)

    outputs = []
    for consecutive in ("", "--phd-consecutive-positions"):
        with megatron_globals(), torch.no_grad(), patch.object(phd_model, "consecutive_positions", plain):
            model = build(f"{NAIVE} {flags} {consecutive}")
            tokens, positions, _ = batch()
            outputs.append(model(tokens, positions, None))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("flags", ["", "--bf16", ROPES["yarn"]], ids=["rope", "bf16", "yarn"])
def test_a_model_at_plain_positions_is_the_same_bit_for_bit(world, flags):
    world.run(check_plain_positions, flags)


COPIES = {
    "vanilla": "",
    "bf16": "--bf16",
    "PHD-CSWA": "--phd-copies 3 --phd-window 5 --phd-chunk 12 --phd-copy-embedding vector",
    "naive": NAIVE,
}


def assert_dense(model, found: dict, positions) -> None:
    """Losses and gradients in float64, of plain torch with rotations as the page has them."""
    import torch

    from tests.megatron.test_copy_embedding import dense_losses

    tokens, _, labels = batch()
    weights = {name: weight.detach().double().requires_grad_() for name, weight in model.named_parameters()}
    losses = dense_losses(model.config, weights, tokens, labels, positions)
    losses.mean().backward()
    torch.testing.assert_close(found["losses"].double(), losses, rtol=1e-4, atol=1e-4)
    for name, weight in weights.items():
        error = (found[name] - weight.grad).abs().max() / weight.grad.abs().max()
        assert error < 1e-4, (name, float(error))


def check_given_positions(flags: str) -> None:
    """Those of the rows, given as data; and others, which no layer may take for them."""
    import torch

    from tests.megatron.test_phd_model import assert_same, results

    plain = torch.arange(40)[None]
    far = torch.stack([plain[0] * 3, plain[0] + 17 * (plain[0] >= 4)])  # another for each sample
    with megatron_globals():
        megatrons = results(build(flags))
    seen = {}
    given = {"whole": plain, "exact": plain.double(), "far": far, "fractions": far.double() / 3}
    for name, positions in given.items():
        with megatron_globals():
            model = build(f"{flags} --rope-max-scale 2")
            called = model.forward
            model.forward = lambda *args, called=called, at=positions, **more: called(
                *args, rotary_positions=at, **more
            )
            seen[name] = results(model)
        if "bf16" not in flags:
            assert_dense(model, seen[name], positions)
    assert all(torch.equal(value, megatrons[name]) for name, value in seen["whole"].items())
    if "bf16" not in flags:
        assert_same(seen["exact"], megatrons)
    for one, other in (("whole", "far"), ("far", "fractions")):
        apart = (seen[one]["logits"] - seen[other]["logits"]).abs().amax(dim=(1, 2))
        assert apart.min() > 0.01  # in both samples


@pytest.mark.parametrize("variant", COPIES)
def test_positions_given_as_data(world, variant):
    """Where they are the rows' numbers: logits and gradients bit for bit."""
    world.run(check_given_positions, COPIES[variant])

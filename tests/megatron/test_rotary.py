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


def check_angles(flags: str) -> None:
    import torch

    from phd.megatron.rotary import consecutive_positions, rotary_angles

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
            plain = rotary_angles(rotary, torch.arange(40).expand(2, -1), 40)
            assert plain.shape == (40 // size, 2, *own.shape[2:])
            assert torch.equal(plain, own.expand_as(plain))
            # which positions this rank has
            (positions,) = torch.where((own.flatten(1)[:, None] == table[:40, 0]).all(-1).any(0))
            angles = rotary_angles(rotary, some, 120)
            assert torch.equal(angles, table[some[:, positions].T])
            copies = rotary_angles(rotary, consecutive_positions(40, 6, 3, some.device), 120)
            assert torch.equal(copies, table[3 * positions[:, None] + rows % 3])


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

"""Stop and resume, also on another layout or with another learning rate."""

import re
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.checkpoint.conftest import LAYOUTS, PHD, SCHEDULE, first_half
from tests.training.test_arguments import refused_at_start
from tests.trainings import losses, scalars
from tests.world import run_pretrain

CASES = [
    ("single", "vanilla"),
    *((layout, "PHD-CSWA-3-5-12") for layout in LAYOUTS),
    *(
        (layout, f"PHD-CSWA-3-5-12+{embedding}")
        for layout in ("single", "DP2-distopt")
        for embedding in ("vector", "table")
    ),
]


def tensors(folder: Path) -> dict:
    """Every tensor of a checkpoint folder, read item by item."""
    import io

    import torch

    from phd.checkpoint import read

    return {
        (index.fqn, index.offset): torch.load(io.BytesIO(read.read_item(folder, item)))
        for index, item in read.read_metadata(folder).storage_data.items()
        if index.offset is not None
    }


@pytest.mark.parametrize(("layout", "variant"), CASES)
def test_resume_equals_never_stopped(train, whole, layout, variant, tmp_path):
    """Bit for bit: losses, gradient norms, weights and optimizer state. The checkpoint was saved while the
    training went on.
    """
    import torch

    folder, uninterrupted = whole(layout, variant)
    copy = first_half(folder, tmp_path / "ckpt")
    after = train(layout, copy, variant=variant)
    for tag, values in uninterrupted.items():
        assert len(values) == 6
        assert after[tag] == values[3:]
    expected, resumed = (tensors(each / "iter_0000006") for each in (folder, copy))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())


def test_an_asynchronous_save_is_the_synchronous_one(world, whole, base_flags, tmp_path):
    """Bit for bit, while the training goes on changing what is being written. However slow the disk, each
    waits for the one before: there is one copy of the model in memory, and the checkpoint before is whole.
    """
    import torch

    schedule = [*SCHEDULE, "--exit-interval", "4", "--save-interval", "1", "--async-save"]
    (output,) = world.run(pretrain_with_a_slow_disk, [*base_flags, *PHD, *schedule, "--save", str(tmp_path)])
    saves = re.findall(r"(scheduled|successfully saved).* iteration +(\d)", output)
    assert saves == [(what, number) for number in "1234" for what in ("scheduled", "successfully saved")], (
        output[-3000:]
    )
    expected, saved = (tensors(each / "iter_0000003") for each in (whole("single")[0], tmp_path))
    assert expected.keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in expected.items())


def pretrain_with_a_slow_disk(flags: list[str]) -> str:
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    slow = staticmethod(write_slowly)
    with patch.object(FileSystemWriterAsync, "write_preloaded_data_multithread", slow):
        return run_pretrain(flags)


def write_slowly(*args: Any) -> None:
    """Called by name in the process that saves, where nothing is replaced."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    time.sleep(1.0)
    FileSystemWriterAsync.write_preloaded_data_multithread(*args)


@pytest.mark.parametrize(
    ("trained", "layout", "flags", "embedding"),
    [
        ("TP2", "single", "", ""),
        ("TP2", "PP2", "", ""),
        ("TP2", "PP2", "", "+table"),
        ("DP2-distopt", "single", "--use-distributed-optimizer", ""),
        # as examples/pretrain.sh saves
        ("DP2-reshardable", "TP2", "--use-distributed-optimizer", ""),
        ("DP2-reshardable", "TP2", "--use-distributed-optimizer", "+vector"),
        ("DP2-reshardable", "PP2", "--use-distributed-optimizer", ""),
    ],
)
def test_resume_on_another_layout(train, whole, trained, layout, flags, embedding, tmp_path):
    """What follows equals the continuation on the layout that saved; also where the state of the optimizer
    was saved by two ranks and one goes on with it.
    """
    variant = f"PHD-CSWA-3-5-12{embedding}"
    folder, same = whole(trained, variant)
    other = train(layout, first_half(folder, tmp_path / "ckpt"), *flags.split(), variant=variant)
    for tag, values in same.items():
        assert len(values) == 6
        assert other[tag] == pytest.approx(values[3:], rel=1e-5)


def test_another_layout_that_the_state_of_the_optimizer_does_not_fit(
    world, base_flags, train, whole, tmp_path
):
    """Refused before anything begins, with two remedies, both walked."""
    folder = first_half(whole("DP2-distopt")[0], tmp_path / "ckpt")
    flags = [*base_flags, *PHD, *SCHEDULE, "--load", str(folder), "--tensor-model-parallel-size", "2"]
    answer = world.run(refused_at_start, flags, ranks=2)[0]
    assert f"{folder}/iter_0000003 was saved with --use-distributed-optimizer: pass it, or begin" in answer
    flags += ["--use-distributed-optimizer"]
    answers = world.run(refused_at_start, flags, ranks=2)
    assert "TP 1 and PP 1 in a way that only DP can change (this run: TP 2, PP 1)" in answers[0]
    assert "begin a new run with --pretrained-checkpoint " in answers[0]
    anew = [*flags[: flags.index("--load")], "--pretrained-checkpoint", str(folder), *flags[-3:]]
    assert world.run(refused_at_start, anew, ranks=2) == ["", ""]
    train("DP2-reshardable", folder, "--exit-interval", "4")
    assert world.run(refused_at_start, flags, ranks=2) == ["", ""]


RATES = ["--lr", "1e-3", "--min-lr", "1e-4", "--lr-decay-style", "linear", "--lr-decay-iters", "9"]


@pytest.mark.parametrize("layout", ["TP2", "DP2-distopt"])
def test_the_learning_rate_changes_on_resume(world, base_flags, whole, layout, tmp_path):
    """If asked for; also its decay. Adam's moments go on."""
    ranks, flags = LAYOUTS[layout]
    folder = first_half(whole(layout)[0], tmp_path / "ckpt")
    flags = [*base_flags, *PHD, *flags.split(), *SCHEDULE, "--load", str(folder), *RATES]
    for more, rates in {
        "--override-opt-param-scheduler": [1e-3 - 9e-4 * step / 9 for step in (4, 5, 6)],
        "--use-checkpoint-opt-param-scheduler": [2e-3] * 3,
    }.items():
        log = tmp_path / more
        world.pretrain([*flags, more, "--tensorboard-dir", str(log)], ranks)
        assert scalars(log, "learning-rate") == pytest.approx(rates)
        assert losses(log)["lm loss"][0] == pytest.approx(whole(layout)[1]["lm loss"][3], rel=1e-5)


def groups_settled(groups: list[dict], saved: list[dict], **flags: bool) -> list[dict] | str:
    """What a checkpoint's groups are when they are loaded."""
    from phd.megatron.compat import settle_rates

    args = Namespace(
        **{"override_opt_param_scheduler": False, "use_checkpoint_opt_param_scheduler": False} | flags
    )
    try:
        settle_rates(groups, saved, args)
    except ValueError as error:
        return str(error)
    return saved


def test_groups_of_the_checkpoint_are_found_whatever_their_rates(world):
    """Those without weight decay, those of --decoupled-lr, and two that only their rates tell apart."""

    def make(rate: float, decay: float, **more: Any) -> dict:
        return {
            "wd_mult": decay,
            "lr_mult": 1.0,
            "max_lr": rate,
            "min_lr": rate / 10,
            "params": [decay],
            **more,
        }

    saved = [make(1.0, 0.0), make(1.0, 1.0), make(5.0, 1.0), make(3.0, 1.0, is_decoupled_lr=True)]
    ours = [make(6.0, 1.0, is_decoupled_lr=True), make(9.0, 1.0), make(2.0, 1.0), make(2.0, 0.0)]
    (settled,) = world.run(partial(groups_settled, override_opt_param_scheduler=True), ours, saved)
    assert [group["max_lr"] for group in settled] == [2.0, 2.0, 9.0, 6.0]
    assert [group["params"] for group in settled] == [group["params"] for group in saved]
    assert "another schedule" in world.run(groups_settled, ours, saved)[0]
    (answer,) = world.run(groups_settled, ours[1:], saved)
    assert "the checkpoint has 4 groups of parameters, this run 3 others: pass the flags" in answer

"""Stop and resume, change the layout, change the variant; and checkpoints that must not be loaded."""

import pickle
import re
import shutil
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from phd.run.status import TRACKER
from tests.training.test_arguments import refused_at_start
from tests.trainings import VARIANTS, losses, scalars
from tests.world import run_pretrain

LAYOUTS = {
    "single": (1, ""),
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "CP2": (2, "--context-parallel-size 2 --phd-window 5"),
    "DP2-distopt": (2, "--use-distributed-optimizer"),
    "DP2-reshardable": (
        2,
        "--use-distributed-optimizer --ckpt-fully-parallel-save --dist-ckpt-optim-fully-reshardable",
    ),
    # each copy has its own mask, drawn in the same order after a resume
    "dropout": (1, "--hidden-dropout 0.2"),
}
PHD = VARIANTS["PHD-CSWA-3-5-12"]
SCHEDULE = ["--train-iters", "6", "--global-batch-size", "4"]
CASES = [("single", "vanilla"), *((layout, "PHD-CSWA-3-5-12") for layout in LAYOUTS)]


@pytest.fixture(scope="module")
def train(world, base_flags):
    """train(layout, folder): six steps in all; saves into and loads from ``folder``."""

    def run(layout: str, folder: Path, *more: str, variant: list[str] = PHD) -> dict[str, list[float]]:
        ranks, flags = LAYOUTS[layout]
        log = folder.parent / f"log-{len(list(folder.parent.iterdir()))}"
        paths = ["--load", str(folder), "--save", str(folder), "--tensorboard-dir", str(log)]
        schedule = [*SCHEDULE, "--save-interval", "3"]
        world.pretrain([*base_flags, *variant, *flags.split(), *schedule, *paths, *more], ranks)
        return losses(log)

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """whole(layout, variant): the checkpoints of a run that is never stopped, of three and of six steps, and
    its losses; trained once.
    """
    done: dict[tuple[str, str], tuple[Path, dict[str, list[float]]]] = {}

    def run(layout: str, variant: str = "PHD-CSWA-3-5-12") -> tuple[Path, dict[str, list[float]]]:
        if (layout, variant) not in done:
            folder = tmp_path_factory.mktemp("whole") / "ckpt"
            done[layout, variant] = folder, train(layout, folder, variant=VARIANTS[variant])
        return done[layout, variant]

    return run


def first_half(checkpoints: Path, copy: Path) -> Path:
    """A copy as it was after three of six steps."""
    shutil.copytree(checkpoints, copy, ignore=shutil.ignore_patterns("iter_0000006"))
    (copy / TRACKER).write_text("3")
    return copy


@pytest.fixture(scope="module")
def saved(whole, tmp_path_factory) -> Path:
    """PHD-CSWA-3-5-12 on TP 2, after three of six steps."""
    folder, _ = whole("TP2")
    return first_half(folder, tmp_path_factory.mktemp("saved") / "checkpoints")


def tensors(folder: Path) -> dict:
    """Every tensor of a checkpoint folder, read item by item."""
    import io

    import torch

    from phd.checkpoint import integrity

    return {
        (index.fqn, index.offset): torch.load(io.BytesIO(integrity._read_item(folder, item)))
        for index, item in integrity._read_metadata(folder).storage_data.items()
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
    after = train(layout, copy, variant=VARIANTS[variant])
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
    ("trained", "layout", "flags"),
    [
        ("TP2", "single", ""),
        ("TP2", "PP2", ""),
        ("DP2-distopt", "single", "--use-distributed-optimizer"),
        # as examples/pretrain.sh saves
        ("DP2-reshardable", "TP2", "--use-distributed-optimizer"),
        ("DP2-reshardable", "PP2", "--use-distributed-optimizer"),
    ],
)
def test_resume_on_another_layout(train, whole, trained, layout, flags, tmp_path):
    """What follows equals the continuation on the layout that saved; also where the state of the optimizer
    was saved by two ranks and one goes on with it.
    """
    folder, same = whole(trained)
    other = train(layout, first_half(folder, tmp_path / "ckpt"), *flags.split())
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


class Malice:
    """A pickle that would create a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "torn": ("__0_0.distcp", tear, r"__0_0\.distcp ends after \d+ of \d+ bytes"),
    "flipped-bit": ("__1_0.distcp", flip, r"__1_0\.distcp is corrupted near byte \d+"),
    "missing": ("__1_0.distcp", Path.unlink, r"__1_0\.distcp is missing"),
    "torn-metadata": (".metadata", tear, r"\.metadata cannot be read"),
    "no-metadata": (".metadata", Path.unlink, r"\.metadata is missing"),
    # what Megatron writes last
    "killed-at-the-last": ("metadata.json", Path.unlink, r"metadata\.json is missing"),
    "torn-at-the-last": ("metadata.json", lambda file: file.write_text(""), r"metadata\.json cannot be read"),
}


def damage_in(folder: Path, rank: int = 0, world_size: int = 1) -> str:
    from phd.checkpoint.integrity import find_damage

    return find_damage(folder, rank, world_size) or ""


def refusal(folder: Path, step: int | None = None, pretrained: Path | None = None) -> str:
    """What pretrain_phd.py says to --load FOLDER --ckpt-step STEP --pretrained-checkpoint PRETRAINED at
    start-up.
    """
    from phd.checkpoint.integrity import settle_checkpoint

    args = Namespace(
        load=str(folder),
        pretrained_checkpoint=pretrained and str(pretrained),
        ckpt_step=step,
        rank=0,
        world_size=1,
    )
    try:
        settle_checkpoint(args)
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A copy of the saved run that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "ckpt"))


def test_whole_checkpoint_is_taken(world, copy):
    assert world.run(refusal, copy) == [""]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_named(world, saved, copy, damage):
    """By file; refused where there is no other, or where it was asked for. A flipped bit is found
    later, by all ranks together: see test_guard.py.
    """
    file, harm, message = DAMAGE[damage]
    harm(copy / "iter_0000003" / file)
    assert re.search(message, *world.run(damage_in, copy / "iter_0000003"))
    if damage == "flipped-bit":  # by the rank whose share it is
        answers = [world.run(damage_in, copy / "iter_0000003", rank, 3)[0] for rank in range(3)]
        assert sum(bool(answer) for answer in answers) == 1
        return
    assert re.search(f"{message}.*There is no whole checkpoint to go back to", *world.run(refusal, copy))
    shutil.copytree(saved / "iter_0000003", copy / "iter_0000002")
    assert world.run(refusal, copy) == [""]
    assert re.search(
        f"{message}.*is iteration 2: continue from it with --ckpt-step 2", *world.run(refusal, copy, 3)
    )


def test_an_iteration_that_was_never_saved(world, copy, tmp_path):
    """It was called damaged, also in an empty folder."""
    (answer,) = world.run(refusal, copy, 99)
    assert answer.startswith(f"there is no checkpoint of iteration 99 (--ckpt-step) in {copy}. ")
    assert answer.endswith("The newest whole one is iteration 3: continue from it with --ckpt-step 3")
    assert world.run(refusal, copy, 3) == [""]
    (answer,) = world.run(refusal, tmp_path / "nothing", 99)
    assert answer.endswith("/nothing: leave --ckpt-step out to start afresh")
    assert world.run(refusal, tmp_path / "nothing") == [""]


def test_the_first_weights_matter_no_more_when_the_run_has_its_own(world, saved, copy, tmp_path):
    """Nor do --ckpt-step and falling back, which mean the run's own checkpoints, look for them there."""
    first = tmp_path / "first"
    shutil.copytree(saved, first)
    (first / "iter_0000003").rename(first / "iter_0000005")
    (first / "latest_checkpointed_iteration.txt").write_text("5")
    shutil.copytree(saved / "iter_0000003", copy / "iter_0000002")
    assert world.run(refusal, copy, 2, first) == [""]
    tear(copy / "iter_0000003" / "__0_0.distcp")
    assert world.run(refusal, copy, None, first) == [""]
    tear(first / "iter_0000005" / "__0_0.distcp")
    assert world.run(refusal, copy, None, first) == [""]
    shutil.copytree(saved / "iter_0000003", first / "iter_0000004")
    advice = f"is iteration 4: write 4 into {first}/latest_checkpointed_iteration.txt"
    assert advice in world.run(refusal, tmp_path / "nothing", None, first)[0]


def test_a_checkpoint_of_another_format_is_not_called_damaged(world, tmp_path):
    """It is whole, and to be converted; so is what Megatron calls a release."""
    (tmp_path / "iter_0000003" / "mp_rank_00").mkdir(parents=True)
    tracker = tmp_path / TRACKER
    for text, message in {"3": "is not a checkpoint in torch_dist format", "release": "a release"}.items():
        tracker.write_text(text)
        (answer,) = world.run(refusal, tmp_path)
        assert message in answer and f"--load {tmp_path}, --ckpt-format torch" in answer
        assert "damaged" not in answer and "remove" not in answer


def test_arguments_of_the_checkpoint_are_refused_as_those_of_the_command_line(
    world, base_flags, saved, tmp_path
):
    """Megatron's default dropout, which our attention does not do."""
    folder = tmp_path / "vanilla"
    once = ["--train-iters", "1", "--save-interval", "1", "--attention-dropout", "0.1"]
    world.pretrain([*base_flags, *once, "--save", str(folder)])
    ours = ["--phd-copies", "2", "--attention-dropout", "0", "--override-phd-variant"]
    flags = [*base_flags, *ours, "--use-checkpoint-args"]
    for source in ("--load", "--pretrained-checkpoint"):
        (answer,) = world.run(refused_at_start, [*flags, source, str(folder)])
        assert "--attention-dropout above 0 (pass --attention-dropout 0)" in answer
    flags = [*base_flags, *PHD, "--use-checkpoint-args", "--load", str(saved)]
    at = flags.index("--seq-length")
    assert world.run(refused_at_start, [*flags[:at], *flags[at + 2 :]]) == [""]


def test_arguments_come_from_a_checkpoint_whose_tracker_a_kill_left_empty(world, base_flags, copy):
    """Megatron would end there, without an error."""
    (copy / TRACKER).write_text("")
    at = base_flags.index("--seq-length")
    flags = [*base_flags[:at], *base_flags[at + 2 :], *PHD, "--use-checkpoint-args", "--load", str(copy)]
    assert world.run(refused_at_start, flags) == [""]


def test_unreadable_tracker_is_refused(world, copy):
    tracker = copy / TRACKER
    tracker.write_text("three")
    assert re.search("should hold an iteration, found 'three'.*--ckpt-step 3", *world.run(refusal, copy))
    tracker.write_text("")  # as a kill leaves it
    assert world.run(refusal, copy) == [""]


def test_checkpoint_metadata_is_not_executed(world, copy, tmp_path):
    trace = tmp_path / "executed"
    (copy / "iter_0000003" / ".metadata").write_bytes(pickle.dumps(Malice(trace)))
    assert "refusing to run" in world.run(refusal, copy)[0]
    assert not trace.exists()

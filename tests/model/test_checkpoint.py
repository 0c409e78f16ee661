"""Stop and resume, change the layout, change the variant; and checkpoints that must not be loaded."""

import pickle
import re
import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from phd.run.status import TRACKER
from tests.model.conftest import VARIANTS, losses
from tests.model.test_arguments import refused_at_start
from tests.world import run_pretrain

LAYOUTS = {
    "single": (1, ""),
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "CP2": (2, "--context-parallel-size 2 --phd-window 5"),
    "DP2-distopt": (2, "--use-distributed-optimizer"),
    "async-save": (1, "--async-save"),
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

    from phd.model import checkpoint

    return {
        (index.fqn, index.offset): torch.load(io.BytesIO(checkpoint._read_item(folder, item)))
        for index, item in checkpoint._read_metadata(folder).storage_data.items()
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


def test_an_asynchronous_save_waits_for_the_one_before(world, base_flags, tmp_path):
    """However slow the disk: one copy of the model in memory, and the checkpoint before is whole."""
    schedule = ["--train-iters", "3", "--save-interval", "1", "--async-save"]
    (output,) = world.run(pretrain_with_a_slow_disk, [*base_flags, *PHD, *schedule, "--save", str(tmp_path)])
    saves = re.findall(r"(scheduled|successfully saved).* iteration +(\d)", output)
    assert saves == [(what, number) for number in "123" for what in ("scheduled", "successfully saved")], (
        output[-3000:]
    )


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
    [("TP2", "single", ""), ("TP2", "PP2", ""), ("DP2-distopt", "single", "--use-distributed-optimizer")],
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


def test_another_variant_is_refused_unless_asked_for(world, saved, base_flags):
    other = ["--phd-copies", "2", "--phd-window", "5", "--phd-chunk", "12"]
    flags = [*base_flags, *other, *SCHEDULE, "--load", str(saved), "--exit-interval", "4"]
    (answer,) = world.run(refused_at_start, flags)
    assert "was trained as PHD-CSWA-3-5-12, this run is PHD-CSWA-2-5-12" in answer
    output = world.pretrain([*flags, "--override-phd-variant"])
    assert "PHD-CSWA-2-5-12 continues from" in output
    assert "trained as PHD-CSWA-3-5-12" in output


def variant_refusals(trained: dict, ours: list[dict]) -> list[str]:
    """What runs of the variants ``ours`` say to a checkpoint with the arguments ``trained``."""
    from phd.config import PHDConfig
    from phd.model import checkpoint

    answers = []
    read_args, checkpoint.read_args = checkpoint.read_args, lambda folder: Namespace(**trained)
    try:
        for fields in ours:
            try:
                checkpoint._refuse_other_variant(Path("ckpt"), False, PHDConfig(**fields))
                answers.append("")
            except ValueError as error:
                answers.append(str(error))
    finally:
        checkpoint.read_args = read_args
    return answers


def test_another_attention_pattern_is_another_variant(world):
    """By its name, or by the numbers behind one name; flags without effect on it may differ."""
    sink = {"attention_pattern": "longgen-sink"}
    ours = [sink, sink | {"attention_pattern_local_blocks": 4}, sink | {"attention_pattern_stride": 8}, {}]
    (answers,) = world.run(variant_refusals, {"num_layers": 4, **sink}, ours)
    assert answers[0] == answers[2] == ""
    was, now = (f"1*sink(64: 1+{local}),2*full,1*sink(64: 1+{local})" for local in (32, 4))
    assert answers[1].startswith(
        f"the checkpoint ckpt was trained as {was}, this run is {now}: pass the same"
    )
    assert "was trained as longgen-sink, this run is vanilla: " in answers[3]
    assert "--phd-* and --attention-pattern* flags, or --override-phd-variant" in answers[3]
    (answers,) = world.run(variant_refusals, {"num_layers": 4}, [{}, sink])
    assert answers[0] == "" and "was trained as vanilla, this run is longgen-sink" in answers[1]


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
}


def damage_in(folder: Path) -> str:
    from phd.model.checkpoint import find_damage

    return find_damage(folder) or ""


def refusal(folder: Path, step: int | None = None, pretrained: Path | None = None) -> str:
    """What pretrain_phd.py says to --load FOLDER --ckpt-step STEP --pretrained-checkpoint PRETRAINED at
    start-up.
    """
    from phd.config import PHDConfig
    from phd.model.checkpoint import settle_checkpoint

    args = Namespace(
        load=str(folder),
        pretrained_checkpoint=pretrained and str(pretrained),
        ckpt_step=step,
        rank=0,
        world_size=1,
        override_phd_variant=False,
    )
    try:
        settle_checkpoint(args, PHDConfig(phd_copies=3, phd_window=5, phd_chunk=12))
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
    later, by all ranks together: see test_survival.py.
    """
    file, harm, message = DAMAGE[damage]
    harm(copy / "iter_0000003" / file)
    assert re.search(message, *world.run(damage_in, copy / "iter_0000003"))
    if damage == "flipped-bit":
        return
    assert re.search(f"{message}.*There is no whole checkpoint", *world.run(refusal, copy))
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

"""Signals, kills, damaged checkpoints, full disks: how a start ends, and that the next one goes on."""

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phd.run.record import METRICS_FILE
from phd.run.status import FAILED, TRACKER, UNFINISHED, judge, newest_checkpoint
from tests.checkpoint.conftest import damage_in, flip, tear
from tests.runs import record
from tests.starts import TIMEOUT_S, FreshStart, Start, nothing, running, signal_after, signal_before
from tests.training.test_arguments import refused_at_start
from tests.trainings import VARIANTS

SCHEDULE = shlex.split("--train-iters 12 --save-interval 2 --eval-interval 4 --eval-iters 1")
KILLS = {"sync": 20, "async": 4}


@pytest.fixture(scope="module")
def flags(base_flags, forks) -> list[str]:
    return [*base_flags, *VARIANTS["PHD-CSWA-3-5-12"], *SCHEDULE]


def own(run: Path) -> list[str]:
    return ["--run-dir", str(run), "--data-cache-path", str(run / "index-cache")]


def start(flags, run: Path, *more: str, **how) -> Start:
    return Start([*flags, *own(run), *more], run.with_suffix(".log"), **how)


def finish(flags, run: Path, *more: str) -> str:
    begun = start(flags, run, *more)
    assert begun.end() == 0, begun.output()[-3000:]
    assert judge(run)[0] == 0
    return begun.output()


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory) -> Path:
    """A run of twelve iterations that nothing happens to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(flags, run)
    return run


def folders(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / "checkpoints").glob("iter_*"))


def whole(run: Path) -> list[int]:
    """The iterations whose checkpoint says itself that it is complete."""
    return sorted(int(file.parent.name[5:]) for file in (run / "checkpoints").glob("iter_*/.metadata"))


# Before what of a save the process is killed, in the order in which one start after the other gets there;
# then the checkpoints that are whole, and the one that the tracker names.
PHASES = {
    r"open .*/iter_0000002/__0_0\.distcp w": ([], 0),
    r"open .*/iter_0000002/\.metadata\.tmp w": ([], 0),
    r"open .*/iter_0000002/metadata\.json w": ([2], 0),
    rf"open .*/{TRACKER} w": ([2], 0),
    r"open .*/iter_0000004/metadata\.json w": ([2, 4], 2),
    r"shutil\.rmtree .*/iter_0000004": ([2], 2),  # to save it again
    r"shutil\.rmtree .*/iter_0000002": ([4, 6], 6),  # --keep-last-checkpoints
}


def test_killed_while_saving(flags, undisturbed, tmp_path):
    """In every phase of a save, one start after the other: the next one begins where the newest whole
    checkpoint is. In the end there is the record of a run never killed, bit for bit.
    """
    run = tmp_path / "run"
    more = ["--keep-last-checkpoints", "2"]
    for phase, (left, newest) in PHASES.items():
        begun = start(flags, run, *more, before=partial(signal_before, phase, signal.SIGKILL))
        assert begun.end() == -signal.SIGKILL, begun.output()[-3000:]
        assert (whole(run), newest_checkpoint(run / "checkpoints")) == (left, newest), phase
    output = finish(flags, run, *more)
    loaded = re.findall(r"successfully loaded checkpoint from .* at iteration (\d+)", output)
    assert loaded == ["2", "2", "2", "6"]  # of all starts, whose log is one
    assert record(run) == record(undisturbed)
    assert folders(run) == ["iter_0000010", "iter_0000012"]


@pytest.mark.slow
@pytest.mark.parametrize("saving", ["sync", "async"])
def test_killed_at_random_moments(flags, undisturbed, saving, tmp_path):
    """Of a save; asynchronous ones as from a shell. A run that gets to its end is followed by another."""
    saved = [file.stat().st_mtime for file in (undisturbed / "checkpoints").glob("iter_*/.metadata")]
    period = (max(saved) - min(saved)) / (len(saved) - 1)  # from save to save, on this machine
    dice = random.Random(1)
    more = ["--async-save"] if saving == "async" else []
    kind = FreshStart if saving == "async" else Start
    run, kills, ends = tmp_path / "run-0", 0, 0
    while kills < KILLS[saving] or run.exists():
        begun = kind([*flags, *own(run), *more], run.with_suffix(".log"))
        before = set(folders(run))
        if kills < KILLS[saving] and begun.wait_for(lambda: set(folders(run)) > before):  # noqa: B023
            time.sleep(dice.uniform(0, period))
            with contextlib.suppress(ProcessLookupError):  # it was faster
                begun.send(signal.SIGKILL)
        code = begun.end()
        if code == -signal.SIGKILL:
            kills += 1
        else:
            assert code == 0, begun.output()[-3000:]
            assert record(run) == record(undisturbed)
            ends += 1
            run = tmp_path / f"run-{ends}"


def test_the_process_that_saves_is_killed(flags, undisturbed, tmp_path):
    """As a host short of memory does it. Megatron would wait for ever."""
    run = tmp_path / "run"
    begun = start(flags, run, "--async-save", before=partial(signal_after, {5: signal.SIGSTOP}))
    begun.wait_until_stopped()
    begun.kill_saver()
    begun.send(signal.SIGCONT)
    assert begun.end() == 1, begun.output()[-3000:]
    assert "error: rank 0: the process that saves (--async-save) was killed by SIGKILL" in begun.output()
    code, line = judge(run)
    assert code == UNFINISHED and "give the job more memory, or save without --async-save" in line
    assert newest_checkpoint(run / "checkpoints") >= 2
    finish(flags, run, "--async-save")
    assert record(run) == record(undisturbed)


def test_nothing_outlives_a_killed_rank(flags, tmp_path):
    """What it had started would keep the memory of host and GPU from the next start."""
    more = ["--async-save"]
    begun = start(flags, tmp_path / "run", *more, before=partial(signal_after, {5: signal.SIGSTOP}))
    begun.wait_until_stopped()
    children = begun.children()
    assert len(children) >= 3  # the fork server, the process that saves, its manager
    begun.send(signal.SIGKILL)
    begun.wait_for(lambda: False)
    deadline = time.monotonic() + TIMEOUT_S
    while left := [pid for pid in children if running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert begun.end() == -signal.SIGKILL


def test_a_worker_of_the_dataloader_is_killed(flags, undisturbed, tmp_path):
    """The error ends the process too: Python would wait for the other workers, which ignore SIGTERM."""
    run = tmp_path / "run"
    begun = start(flags, run, "--num-workers", "1", before=partial(signal_after, {5: signal.SIGSTOP}))
    begun.wait_until_stopped()
    begun.kill_worker()
    begun.send(signal.SIGCONT)
    assert begun.end() == 1, begun.output()[-3000:]
    assert "is killed by signal: Killed" in begun.output(), begun.output()[-3000:]
    assert judge(run)[0] == UNFINISHED
    finish(flags, run, "--num-workers", "1")
    assert record(run) == record(undisturbed)


def test_a_signal_saves_and_the_next_start_goes_on(flags, undisturbed, tmp_path):
    """At once, whichever of the three it is."""
    run = tmp_path / "run"
    for iteration, number in {3: signal.SIGTERM, 5: signal.SIGUSR1, 9: signal.SIGINT}.items():
        before = partial(signal_after, {iteration: number})
        begun = start(flags, run, "--save-interval", "1000", before=before)
        assert begun.end() == UNFINISHED == os.EX_TEMPFAIL, begun.output()[-3000:]
        code, line = judge(run)
        assert code == UNFINISHED
        assert line.startswith(f"interrupted: {number.name}; checkpoint at iteration {iteration} of 12")
        assert whole(run)[-1] == newest_checkpoint(run / "checkpoints") == iteration
    finish(flags, run)
    assert record(run) == record(undisturbed)


def nobody_listens(signals: dict[int, signal.Signals]) -> None:
    """Output by a locale that lacks letters; signals after these iterations."""
    sys.stdout = open(1, "w", encoding="ascii", errors="strict", closefd=False)  # noqa: SIM115
    signal_after(signals)


def test_nobody_reads_what_it_prints_any_more(flags, undisturbed, tmp_path):
    """The `tee` of a pipe gets the ^C too, and a closed terminal sends SIGHUP and takes no output: the
    training goes on, and saves when it is told to end. So does one that prints what the locale lacks.
    """
    run = tmp_path / "s\u00f6der"
    os.mkfifo(run.with_suffix(".log"))
    before = partial(nobody_listens, {5: signal.SIGSTOP, 8: signal.SIGHUP})
    begun = start(flags, run, "--save-interval", "1000", before=before)
    with run.with_suffix(".log").open(errors="strict") as output:
        assert any("iteration        5/" in line for line in output)
    begun.wait_until_stopped()
    begun.send(signal.SIGCONT)
    assert begun.end() == UNFINISHED
    assert judge(run)[1].startswith("interrupted: SIGHUP; checkpoint at iteration 8 of 12")
    assert newest_checkpoint(run / "checkpoints") == 8
    lines = record(run)
    assert lines[-1]["iteration"] == 8 and lines == record(undisturbed)[: len(lines)]


@pytest.fixture
def part(flags, undisturbed, tmp_path) -> Path:
    """A copy of the run as it was at iteration 10, with the checkpoints of 6, 8 and 10."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for folder in set(folders(run)) - {"iter_0000006", "iter_0000008", "iter_0000010"}:
        shutil.rmtree(run / "checkpoints" / folder)
    (run / "checkpoints" / TRACKER).write_text("10")
    metrics = run / METRICS_FILE
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["iteration"] <= 10))
    return run


def contents(run: Path) -> dict[str, bytes]:
    """All but the index caches, which may grow."""
    files = [file for file in run.rglob("*") if file.is_file() and file.parent.name != "index-cache"]
    return {str(file): file.read_bytes() for file in files}


def trained(run: Path) -> dict[str, bytes]:
    """The record and the checkpoints: what a start that ends before training leaves as they are."""
    return {
        name: content
        for name, content in contents(run).items()
        if "checkpoints" in Path(name).parts or name.endswith(METRICS_FILE)
    }


DAMAGE = {
    "torn": (lambda folder: tear(folder / "__0_0.distcp"), r"__0_0\.distcp ends after"),
    "flipped-bit": (lambda folder: flip(folder / "__0_0.distcp"), r"is corrupted near byte"),
    "no-metadata": (lambda folder: (folder / ".metadata").unlink(), r"\.metadata is missing"),
    "empty-tracker": (lambda folder: folder.with_name(TRACKER).write_text(""), None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(flags, undisturbed, part, damage):
    harm, message = DAMAGE[damage]
    harm(part / "checkpoints" / "iter_0000010")
    output = finish(flags, part)
    if message:
        assert re.search(f"WARNING: the checkpoint .*{message}.*; continuing from iteration 8", output)
    assert re.search(f"successfully loaded .* at iteration {8 if message else 10}", output)
    assert record(part) == record(undisturbed)


def test_checkpoints_that_are_not_mounted(world, flags, part, tmp_path):
    """On this node. Megatron would begin anew, and our record with it."""
    (part / "checkpoints").rename(tmp_path / "scratch")
    (part / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = contents(part)
    (answer,) = world.run(refused_at_start, [*flags, *own(part)])
    assert f"{part}/checkpoints links to {tmp_path}/elsewhere, which is not there" in answer
    assert contents(part) == before
    (tmp_path / "scratch").rename(tmp_path / "elsewhere")  # the remedies: mounted, or the link removed
    assert world.run(refused_at_start, [*flags, *own(part)]) == [""]
    (part / "checkpoints").unlink()
    assert world.run(refused_at_start, [*flags, *own(part)]) == [""]


def test_a_checkpoint_that_was_asked_for_is_not_replaced(flags, part, tmp_path):
    """By --ckpt-step, or as the first weights: also where only a checksum is wrong, which is found later."""
    flip(part / "checkpoints" / "iter_0000010" / "__0_0.distcp")
    before = trained(part)
    begun = start(flags, part, "--ckpt-step", "10")
    assert begun.end() == 1
    advice = "The newest whole one is iteration 8: continue from it with --ckpt-step 8"
    assert advice in begun.output() and advice in judge(part)[1]
    begun = start(flags, tmp_path / "child", "--pretrained-checkpoint", str(part / "checkpoints"))
    assert begun.end() == 1
    assert f"iteration 8: write 8 into {part}/checkpoints/latest" in begun.output()
    assert trained(part) == before


def test_a_tracker_that_holds_something_else(world, flags, undisturbed, part):
    """Megatron would end on it without an error, even where --ckpt-step tells what to load."""
    (part / "checkpoints" / TRACKER).write_text("12x")
    before = contents(part)
    (answer,) = world.run(refused_at_start, [*flags, *own(part)])
    assert "continue from it with --ckpt-step 10" in answer
    assert contents(part) == before
    finish(flags, part, "--ckpt-step", "10")
    assert record(part) == record(undisturbed)


def test_falling_back_in_a_run_with_first_weights(flags, part, tmp_path):
    """They are not looked for at the iteration of the run's own checkpoint."""
    run = tmp_path / "child"
    more = ["--pretrained-checkpoint", str(part / "checkpoints"), "--eval-interval", "100"]
    short = ["--train-iters", "4", "--lr-decay-iters", "12"]
    finish(flags, run, *more, *short)
    complete = record(run)
    tear(run / "checkpoints" / "iter_0000004" / "__0_0.distcp")
    assert "continuing from iteration 2" in finish(flags, run, *more, *short)
    assert record(run) == complete


def test_an_evaluation_leaves_the_run_alone(world, flags, part):
    """--skip-train: no record, no status, no lock; the run's newest checkpoint, in its folder."""
    before = contents(part)
    output = world.pretrain([*flags, *own(part), "--skip-train"])
    assert "validation loss at iteration 10 on validation set" in output
    assert contents(part) == before


def test_all_checkpoints_damaged(world, flags, part):
    for folder in (part / "checkpoints").glob("iter_*"):
        tear(folder / "__0_0.distcp")
    before = contents(part)
    (answer,) = world.run(refused_at_start, [*flags, *own(part)])
    assert "There is no whole checkpoint to go back to in" in answer
    assert contents(part) == before


def test_a_save_starts_no_process(flags, tmp_path):
    """Megatron's would, for a queue that asynchronous saves share, and import the program there again."""
    begun = start(flags, tmp_path / "run", before=partial(signal_after, {3: signal.SIGSTOP}))
    begun.wait_until_stopped()
    assert whole(tmp_path / "run") == [2]
    assert begun.children() == []
    begun.send(signal.SIGKILL)
    begun.end()


def test_keeping_one_checkpoint_is_refused(world, flags, part):
    before = contents(part)
    (answer,) = world.run(refused_at_start, [*flags, *own(part), "--keep-last-checkpoints", "1"])
    assert "would leave nothing to fall back on" in answer
    assert contents(part) == before


def test_a_second_job_is_refused(flags, tmp_path):
    run = tmp_path / "run"
    # The first one is stopped: it might be done before the second asks.
    before = partial(signal_after, {2: signal.SIGSTOP})
    first = start(flags, run, "--train-iters", "3", before=before)
    first.wait_until_stopped()
    unchanged = contents(run)
    second = Start([*flags, *own(run)], tmp_path / "second.log")
    assert second.end() == 1
    assert "is being written by another job (host" in second.output()
    assert contents(run) == unchanged
    first.send(signal.SIGCONT)
    assert first.end() == 0, first.output()[-3000:]
    assert judge(run)[0] == 0


@pytest.fixture
def small_disk(tmp_path):
    """Mounts tmpfs of a size in MB; needs root."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def meanwhile(do: Callable[[], None]) -> None:
    """Let this process do something when a save has failed, and not pause."""
    from phd.checkpoint import saves

    warn = saves.Saves._warn

    def warn_and_do(*args: Any) -> None:
        warn(*args)
        do()

    saves.PAUSE_SECONDS = 0
    setattr(saves.Saves, "_warn", warn_and_do)  # noqa: B010


@pytest.mark.parametrize("saving", ["sync", "async"])
def test_a_disk_that_is_full_for_a_while(flags, undisturbed, saving, small_disk, tmp_path):
    """The save is tried again, and the run goes on to its end."""
    disk = small_disk(16)
    run, others = tmp_path / "run", disk / "others"
    others.write_bytes(bytes(13 << 20))
    more = ["--async-save"] if saving == "async" else []
    freed = partial(meanwhile, partial(os.remove, others))
    begun = start(flags, run, *more, "--save", str(disk / "checkpoints"), before=freed)
    assert begun.end() == 0, begun.output()[-3000:]
    warnings = re.findall("WARNING: a checkpoint could not be saved (.*): ", begun.output())
    assert warnings == ["(the disk is full)"]
    assert judge(run)[0] == 0 and newest_checkpoint(disk / "checkpoints") == 12
    assert record(run) == record(undisturbed)


@pytest.mark.parametrize("saving", ["sync", "async"])
def test_a_full_disk(flags, undisturbed, saving, small_disk, tmp_path):
    """The save fails with the reason; the checkpoint before it is whole, and with room the run goes on."""
    disk = small_disk(3)
    run = disk / "run"
    more = ["--async-save"] if saving == "async" else []
    begun = Start([*flags, *more, "--run-dir", str(run)], tmp_path / "full.log", partial(meanwhile, nothing))
    assert begun.end() != 0
    # an asynchronous one may fail later than the next line of the record
    assert saving == "async" or "WARNING: a checkpoint could not be saved" in begun.output()
    assert "error: rank 0: the disk is full" in begun.output(), begun.output()[-3000:]
    code, line = judge(run)
    assert code == FAILED
    assert "failed: the disk is full" in line
    assert newest_checkpoint(run / "checkpoints") >= 2
    roomy = tmp_path / "run"
    shutil.copytree(run, roomy)
    finish(flags, roomy, *more)
    assert record(roomy) == record(undisturbed)


def test_a_folder_that_cannot_be_written(flags, small_disk, tmp_path):
    disk = small_disk(1)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    begun = Start([*flags, "--run-dir", str(disk / "run")], tmp_path / "read-only.log")
    assert begun.end() == 1
    assert f"error: cannot write to {disk / 'run'} (Read-only file system)" in begun.output()


def copy_data(flags, folder: Path) -> Path:
    prefix = flags[flags.index("--data-path") + 1]
    for end in (".idx", ".bin"):
        shutil.copy(prefix + end, folder / f"data{end}")
    return folder / "data"


def test_a_missing_data_shard(flags, part, tmp_path):
    copy_data(flags, tmp_path).with_suffix(".bin").unlink()
    before = trained(part)
    begun = start(flags, part, "--data-path", str(tmp_path / "data"))
    assert begun.end() == 1
    assert f"{tmp_path / 'data.bin'} of --data-path is missing" in begun.output()
    assert judge(part)[0] == FAILED
    assert trained(part) == before


def test_a_torn_data_shard(flags, part, tmp_path):
    """Megatron would be killed by SIGBUS."""
    data = copy_data(flags, tmp_path)
    size = os.path.getsize(f"{data}.bin")
    os.truncate(f"{data}.bin", size - 10)
    before = trained(part)
    begun = start(flags, part, "--data-path", str(data))
    assert begun.end() == 1
    message = f"{data}.bin of --data-path ends after {size - 10} of {size} bytes"
    assert message in begun.output() and message in judge(part)[1]
    assert trained(part) == before


def torn_data(data: str) -> str:
    """What the check of the files says to them."""
    from argparse import Namespace

    from phd.training.dataset import refuse_torn

    with pytest.raises(ValueError) as refused:
        refuse_torn(Namespace(blend=([data], None), blend_per_split=None))
    return str(refused.value)


def test_a_torn_index(world, flags, tmp_path):
    """Megatron would end in numpy's words."""
    data = copy_data(flags, tmp_path)
    size = os.path.getsize(f"{data}.idx")
    for left, of in ((size - 10, size), (20, 34)):  # the second is less than its header
        os.truncate(f"{data}.idx", left)
        (answer,) = world.run(torn_data, str(data))
        assert f"{data}.idx of --data-path ends after {left} of {of} bytes" in answer


def test_data_that_were_replaced_get_new_index_caches(world, flags, tmp_path):
    """Megatron knows its caches by the path of the data alone."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    data = copy_data(flags, tmp_path)
    more = [*flags, *own(tmp_path / "run"), "--data-path", str(data), "--train-iters", "4"]
    world.pretrain([*more, "--exit-interval", "2"])
    others = IndexedDatasetBuilder(f"{data}.bin", dtype=np.uint16)
    for _ in range(30):  # half as many documents
        others.add_document(np.arange(200), [200])
    others.finalize(f"{data}.idx")
    said = f"WARNING: {data} was replaced since the last start of this run"
    assert said in world.pretrain(more)
    assert [line["iteration"] for line in record(tmp_path / "run") if line["kind"] == "train"] == [1, 2, 3, 4]
    assert said not in world.pretrain(more)


def test_a_world_size_that_does_not_fit(world, flags, part):
    before = contents(part)
    (answer,) = world.run(refused_at_start, [*flags, *own(part), "--tensor-model-parallel-size", "2"])
    assert answer.startswith("1 rank(s) do not divide into groups of 2 (--tensor-model-parallel-size 2 x ")
    assert contents(part) == before


def test_a_torn_index_cache_is_made_again(flags, undisturbed, part):
    torn = [*(part / "index-cache").glob("*.npy")]
    for file in torn:
        file.write_bytes(file.read_bytes()[:-8])
    finish(flags, part)
    assert torn and record(part) == record(undisturbed)


# The first step makes all weights infinite or NaN, and RMSNorm, which divides by their size, NaN of them all.
# A finite rate, however large, leaves it to the order of sums whether NaN or Inf comes first.
NAN = shlex.split("--lr inf --clip-grad 0 --save-interval 1")


def test_nan_ends_with_megatrons_verdict(flags, tmp_path):
    """Megatron's rerun machine computes a NaN again, saves, and asks for another machine; after three starts
    that got no further it is not queued again.
    """
    run = tmp_path / "run"
    codes = [UNFINISHED]
    while codes[-1] == UNFINISHED:
        begun = start(flags, run, *NAN)
        code, output = begun.end(), begun.output()
        assert code not in (0, 1) and "found NaN in local forward loss" in output, (code, output[-6000:])
        codes.append(judge(run)[0])
    assert codes == [UNFINISHED] * 4 + [FAILED], (judge(run), output[-6000:])
    assert "rerun machine" in judge(run)[1]
    # Saved in the place of the checkpoint of the same iteration, and loaded from there.
    assert "Getting RerunStateMachine state from checkpoint" in output
    assert not (run / "checkpoints" / "again").exists()


def dies_saving_again(flags: list[str]) -> str:
    """A training that dies when it saves an iteration for the second time."""
    from unittest.mock import patch

    from megatron.training import training

    from tests.world import run_pretrain

    original, saved = training.save_checkpoint, []

    def save_checkpoint(iteration: int, *args: object, **kwargs: object) -> None:
        if iteration in saved:
            raise RuntimeError("died while saving")
        saved.append(iteration)
        original(iteration, *args, **kwargs)

    with patch.object(training, "save_checkpoint", save_checkpoint):
        try:
            return run_pretrain(flags)
        except RuntimeError as error:
            return str(error)


def test_a_whole_checkpoint_stays_until_another_is_whole(world, flags, tmp_path):
    """When Megatron saves what it has just saved, with what it knows of an invalid result."""
    (end,) = world.run(dies_saving_again, [*flags, *NAN, "--run-dir", str(tmp_path / "run")])
    assert end == "died while saving"
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    (damage,) = world.run(damage_in, tmp_path / "run" / "checkpoints" / f"iter_{newest:07d}")
    assert newest > 0 and damage == ""


def steps_of_saving_again(save: Path) -> list[str]:
    """What happens when an iteration is saved for the second time, in order."""
    from unittest.mock import patch

    from phd.checkpoint import saves

    steps: list[str] = []
    saving = saves.Saves(Namespace(save=str(save), rank=0))
    with (
        patch.object(saves.torch.distributed, "barrier"),
        patch.object(saves, "maybe_finalize_async_save", lambda blocking: steps.append("wait")),
        patch.object(
            saves, "replace_checkpoint", lambda save, iteration: steps.append(f"replace {iteration}")
        ),
    ):
        saving._save_again(3, lambda: steps.append(f"save into {Path(saving.args.save).name}"))
    return [*steps, Path(saving.args.save).name]


def test_an_asynchronous_save_is_awaited_before_it_replaces_another(world, tmp_path):
    steps = ["save into again", "wait", "replace 3", tmp_path.name]
    assert world.run(steps_of_saving_again, tmp_path) == [steps]


def out_of_time(flags: list[str]) -> str:
    """A training whose time is up in each evaluation."""
    from unittest.mock import patch

    from megatron.training import training

    from tests.world import run_pretrain

    with patch.object(training, "evaluate", lambda *args, **kwargs: (None, None, True)):
        return run_pretrain(flags)


def test_an_evaluation_that_is_broken_off_is_not_recorded(world, flags, tmp_path):
    """By --exit-duration-in-mins; a later start would take an empty line for one that it need not make."""
    run = tmp_path / "run"
    more = ["--train-iters", "2", "--eval-interval", "2", "--run-dir", str(run)]
    (output,) = world.run(out_of_time, [*flags, *more])
    assert "the evaluation at iteration 2 was broken off and is not recorded" in output
    assert {line["kind"] for line in record(run)} == {"train"}
    world.pretrain([*flags, *more])
    assert [line["iteration"] for line in record(run) if line["kind"] == "validation"] == [2]


def test_what_was_trained_at_another_length_stays_as_it_was(world, flags, tmp_path):
    """In tokens and FLOPs, where a run continues as another variant with shorter sequences."""
    run = tmp_path / "run"
    more = ["--eval-interval", "100", "--train-iters", "4", "--save-interval", "2", "--run-dir", str(run)]
    world.pretrain([*flags, *more, "--exit-interval", "2"])
    before = record(run)
    other = ["--seq-length", "20", "--phd-copies", "2", "--override-phd-variant"]
    world.pretrain([*flags, *more, *other])
    lines = record(run)
    assert lines[:2] == before
    cost = json.loads((run / "phd_run.json").read_text())["flops_per_token"]
    assert cost != before[1]["flops"] / before[1]["tokens"]
    trained = [(line["tokens"], line["flops"]) for line in lines if line["kind"] == "train"]
    assert [tokens for tokens, _ in trained] == [320, 640, 800, 960]
    assert trained[3][1] == pytest.approx(before[1]["flops"] + 320 * cost, rel=1e-12)


def test_train_samples(world, flags, tmp_path):
    """Megatron counts the iterations that they make when it builds the optimizer."""
    run = tmp_path / "run"
    samples = [*flags, "--train-samples", "32", "--eval-interval", "100", "--run-dir", str(run)]
    while "--train-iters" in samples:
        at = samples.index("--train-iters")
        del samples[at : at + 2]
    world.pretrain(samples)
    assert judge(run)[1] == "finished; checkpoint at iteration 4 of 4"
    assert json.loads((run / "phd_run.json").read_text())["train_iters"] == 4


def test_looking_for_spikes_changes_nothing(world, flags, tmp_path):
    """Over more losses than the hundred from which Megatron judges."""
    many = shlex.split("--train-iters 4 --micro-batch-size 1 --global-batch-size 26 --num-layers 1")
    world.pretrain([*flags, *many, *own(tmp_path / "run")])
    output = world.pretrain([*flags, *many, *own(tmp_path / "watched"), "--check-for-spiky-loss"])
    assert "Spiky loss" not in output
    assert record(tmp_path / "watched") == record(tmp_path / "run")


def test_a_finished_run_that_is_started_again_is_left_alone(world, flags, tmp_path):
    """Also where its last iteration is no multiple of --save-interval."""
    run = tmp_path / "run"
    more = [*flags, *own(run), "--train-iters", "3"]
    world.pretrain(more)
    assert whole(run) == [2, 3]
    before, last = trained(run), (run / "checkpoints" / "iter_0000003" / ".metadata").stat().st_mtime_ns
    world.pretrain(more)
    assert trained(run) == before
    assert (run / "checkpoints" / "iter_0000003" / ".metadata").stat().st_mtime_ns == last
    assert judge(run)[0] == 0


def out_of_memory(run: Path) -> str:
    """What a training says for which there is no room on the GPU."""
    import contextlib
    import io
    from argparse import Namespace

    import torch

    from phd.training.errors import explain
    from phd.training.guard import RunGuard

    assert explain(RuntimeError("out of memory")) is None
    guard = RunGuard(Namespace(rank=0, world_size=1, save=None, train_iters=4), run)
    output = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stderr(output), guard.ending(lambda: None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    return output.getvalue()


def test_a_gpu_without_room_is_no_reason_to_start_again(world, tmp_path):
    (output,) = world.run(out_of_memory, tmp_path / "run")
    assert "error: rank 0: out of GPU memory: lower --micro-batch-size, or recompute" in output
    code, line = judge(tmp_path / "run")
    assert code == FAILED and "out of GPU memory" in line


@pytest.mark.parametrize("change", ["--train-iters 50", "--lr 5e-4"])
def test_another_schedule_is_refused(flags, part, change):
    before = trained(part)
    begun = start(flags, part, *change.split())
    assert begun.end() == 1
    assert "or --override-opt-param-scheduler to change it on purpose" in begun.output()
    assert judge(part)[0] == FAILED
    assert trained(part) == before


def test_a_tokenizer_of_another_kind_says_what_to_do(flags, tmp_path):
    """One line, and no start after it: another one would read the same file."""
    wrong = tmp_path / "tokenizer.json"
    wrong.write_text("{}")
    more = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(wrong)]
    begun = start(flags, tmp_path / "run", *more)
    assert begun.end() == 1
    says = f"--tokenizer-type SentencePieceTokenizer does not load --tokenizer-model {wrong} ("
    assert f"pretrain_phd.py: error: {says}" in begun.output()
    code, line = judge(tmp_path / "run")
    assert code == FAILED and says in line


def test_wandb_without_a_key_says_what_to_do(flags, tmp_path):
    more = ["--wandb-project", "phd"]
    begun = start(flags, tmp_path / "run", *more, WANDB_MODE="online", WANDB_API_KEY="")
    assert begun.end() == 1
    assert "pretrain_phd.py: error: W&B does not start" in begun.output()
    assert "WANDB_MODE=offline" in begun.output()


SECRET = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = {"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET, "WANDB_SILENT": "true"}


@pytest.mark.slow
def test_one_wandb_run_for_all_starts(flags, tmp_path):
    """Offline: three starts, one id, no step sent twice, and no key in any file."""
    run = tmp_path / "group" / "run"
    run.parent.mkdir()
    more = ["--wandb-project", "phd", "--save-interval", "3"]
    for signals, code in (({5: signal.SIGKILL}, -signal.SIGKILL), ({8: signal.SIGTERM}, UNFINISHED), ({}, 0)):
        begun = start(flags, run, *more, before=partial(signal_after, signals), **OFFLINE)
        assert begun.end() == code, begun.output()[-3000:]
    assert judge(run)[0] == 0
    sent: list[int] = []
    ids = set()
    for folder in sorted((run / "wandb").glob("offline-run-*")):
        ids.add(folder.name.rpartition("-")[2])
        sent += wandb_steps(folder)
    assert ids == {json.loads((run / "wandb.json").read_text())["id"]}
    # W&B's own process writes a little later: what the kill took of the first five is in metrics.jsonl.
    assert [step for step in sent if step > 5] == [*range(6, 13)]
    assert len(set(sent)) == len(sent) and set(sent) <= set(range(1, 13))
    for file in run.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in begun.output()


def test_the_process_of_wandb_is_killed(flags, undisturbed, tmp_path):
    """The training and its saves go on without it, and the next start sends what W&B missed."""
    run = tmp_path / "run"
    more = ["--wandb-project", "phd"]
    begun = start(flags, run, *more, before=partial(signal_after, {5: signal.SIGSTOP}), **OFFLINE)
    begun.wait_until_stopped()
    begun.kill_wandb()
    begun.send(signal.SIGCONT)
    assert begun.end() == 0, begun.output()[-3000:]
    assert judge(run)[0] == 0 and record(run) == record(undisturbed)
    lost = json.loads((run / "wandb.json").read_text())["lost"]
    assert lost > 5
    assert f"WARNING: W&B gets nothing from iteration {lost} on" in begun.output()
    (first,) = (run / "wandb").glob("offline-run-*")
    again = start(flags, run, *more, **OFFLINE)
    assert again.end() == 0, again.output()[-3000:]
    (second,) = {*(run / "wandb").glob("offline-run-*")} - {first}
    assert wandb_steps(second) == [*range(lost, 13)]
    assert "lost" not in json.loads((run / "wandb.json").read_text())


def wandb_steps(folder: Path) -> list[int]:
    """The steps that an offline run holds, read by W&B's own tool."""
    from wandb.util import get_core_path

    (file,) = folder.glob("*.wandb")
    command = [get_core_path(), "leet", "inspect", "--json", "--no-observability", "--run-file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [line["history"]["step"]["num"] for line in lines if line.get("type") == "history"]

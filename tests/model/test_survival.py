"""Signals, kills, damaged checkpoints, full disks: how a start ends, and that the next one goes on."""

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
from pathlib import Path

import numpy as np
import pytest

from phd.run.record import METRICS_FILE
from phd.run.status import FAILED, TRACKER, UNFINISHED, judge, newest_checkpoint
from tests.model.conftest import VARIANTS
from tests.model.test_checkpoint import damage_in
from tests.runs import record
from tests.starts import FreshStart, Start
from tests.world import ROOT, free_port

KILLS = {"sync": 20, "async": 4}
SCHEDULE = shlex.split("--train-iters 40 --save-interval 2 --eval-interval 10 --eval-iters 1")


@pytest.fixture(scope="module")
def flags(base_flags) -> list[str]:
    return [*base_flags, *VARIANTS["PHD-CSWA-3-5-12"], *SCHEDULE]


def start(flags, run: Path, *more: str, **environment: str) -> Start:
    own = ["--run-dir", str(run), "--data-cache-path", str(run / "index-cache")]
    kind = FreshStart if {"--async-save", "--num-workers"} & {*more} else Start
    return kind([*flags, *own, *more], run.with_suffix(".log"), **environment)


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory) -> Path:
    """A run of forty iterations that nothing happens to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    begun = start(flags, run)
    assert begun.end() == 0, begun.output()[-3000:]
    return run


@pytest.mark.slow
@pytest.mark.parametrize("saving", ["sync", "async"])
def test_killed_while_saving(flags, undisturbed, saving, tmp_path):
    """At random moments of a save; in the end there is the record of a run never killed, bit for bit."""
    run = tmp_path / "run"
    saved = [file.stat().st_mtime for file in (undisturbed / "checkpoints").glob("iter_*/.metadata")]
    period = (max(saved) - min(saved)) / (len(saved) - 1)  # from save to save, on this machine
    dice = random.Random(1)
    more = ["--async-save"] if saving == "async" else []
    kills = 0
    while kills < KILLS[saving]:
        begun = start(flags, run, *more)
        before = set(folders(run))
        count = 1 + kills // 8  # now and then further on, so that they get to the end
        if not begun.wait_for(lambda: len(set(folders(run)) - before) >= count):  # noqa: B023
            break  # it got to its end
        time.sleep(dice.uniform(0, period))
        begun.send(signal.SIGKILL)
        assert begun.end() == -signal.SIGKILL
        kills += 1
    finish(flags, run, *more)
    assert kills > KILLS[saving] // 2
    assert record(run) == record(undisturbed)


def test_the_process_that_saves_is_killed(flags, undisturbed, tmp_path):
    """As a host short of memory does it. Megatron would wait for ever."""
    run = tmp_path / "run"
    begun = start(flags, run, "--async-save")
    assert begun.wait_for(lambda: len(folders(run)) >= 3)
    begun.kill_saver()
    assert begun.end() == 1, begun.output()[-3000:]
    assert "error: rank 0: the process that saves (--async-save) was killed by SIGKILL" in begun.output()
    code, line = judge(run)
    assert code == UNFINISHED and "give the job more memory, or save without --async-save" in line
    assert newest_checkpoint(run / "checkpoints") >= 4
    finish(flags, run, "--async-save")
    assert record(run) == record(undisturbed)


def test_nothing_outlives_a_killed_rank(flags, tmp_path):
    """What it had started would keep the memory of host and GPU from the next start."""
    begun = start(flags, tmp_path / "run", "--async-save")
    assert begun.wait_for(lambda: len(folders(tmp_path / "run")) >= 3)
    children = begun.children()
    assert len(children) >= 4  # the fork server and its tracker, the process that saves, its manager
    begun.send(signal.SIGKILL)
    begun.wait_for(lambda: False)
    deadline = time.monotonic() + 60
    while left := [pid for pid in children if Path(f"/proc/{pid}/stat").exists() and not is_zombie(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    begun.end()


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")


def test_a_worker_of_the_dataloader_is_killed(flags, undisturbed, tmp_path):
    """The error ends the process too: Python would wait for the other workers, which ignore SIGTERM."""
    run = tmp_path / "run"
    begun = start(flags, run, "--num-workers", "1")
    assert begun.wait_for(lambda: "iteration        7/" in begun.output())
    begun.kill_worker()
    assert begun.end() == 1, begun.output()[-3000:]
    assert "is killed by signal: Killed" in begun.output()
    assert judge(run)[0] == UNFINISHED
    finish(flags, run, "--num-workers", "1")
    assert record(run) == record(undisturbed)


def folders(run: Path) -> list[str]:
    return [folder.name for folder in (run / "checkpoints").glob("iter_*")]


def finish(flags, run: Path, *more: str) -> None:
    begun = start(flags, run, *more)
    assert begun.end() == 0, begun.output()[-3000:]
    assert judge(run)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_the_next_start_goes_on(flags, undisturbed, number, tmp_path):
    run = tmp_path / "run"
    begun = start(flags, run, "--save-interval", "1000")
    begun.wait_for(lambda: "iteration       15/" in begun.output())
    begun.send(number)
    assert begun.end() == UNFINISHED == os.EX_TEMPFAIL
    code, line = judge(run)
    assert code == UNFINISHED
    assert line.startswith(f"interrupted: {number.name}; checkpoint at iteration 1")
    assert newest_checkpoint(run / "checkpoints") >= 15
    finish(flags, run)
    assert record(run) == record(undisturbed)


def test_nobody_reads_what_it_prints_any_more(flags, undisturbed, tmp_path):
    """The `tee` of a pipe gets the ^C too, and a closed terminal sends SIGHUP and takes no output: the
    training goes on, and saves when it is told to end. So does one that prints what the locale lacks.
    """
    run = tmp_path / "söder"
    more = ["--run-dir", str(run), "--save-interval", "1000"]
    begun = subprocess.Popen(
        [sys.executable, str(ROOT / "pretrain_phd.py"), *flags, *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # these tests may run under nohup
    )  # fmt: skip
    assert begun.stdout is not None
    with begun.stdout as output:
        assert any("iteration       15/" in line for line in output)
    while len(record(run)) < 18:
        assert begun.poll() is None
        time.sleep(0.01)
    begun.send_signal(signal.SIGHUP)
    assert begun.wait() == UNFINISHED
    assert judge(run)[1].startswith("interrupted: SIGHUP; checkpoint at iteration ")
    assert newest_checkpoint(run / "checkpoints") >= 18
    finish(flags, run)
    assert record(run) == record(undisturbed)


@pytest.fixture
def half(flags, undisturbed, tmp_path) -> Path:
    """A copy of the run as it was at iteration 20, with the checkpoints of 16, 18 and 20."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for folder in (run / "checkpoints").glob("iter_*"):
        if folder.name not in ("iter_0000016", "iter_0000018", "iter_0000020"):
            shutil.rmtree(folder)
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("20")
    return run


def tear(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "torn": (tear, r"__0_0\.distcp ends after"),
    "flipped-bit": (flip, r"is corrupted near byte"),
    "no-metadata": (lambda folder: (folder / ".metadata").unlink(), r"\.metadata is missing"),
    "empty-tracker": (
        lambda folder: folder.with_name("latest_checkpointed_iteration.txt").write_text(""),
        None,
    ),
    "no-tracker": (lambda folder: folder.with_name(TRACKER).unlink(), None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(flags, undisturbed, half, damage):
    harm, message = DAMAGE[damage]
    harm(half / "checkpoints" / "iter_0000020")
    begun = start(flags, half)
    assert begun.end() == 0, begun.output()[-3000:]
    if message:
        assert "WARNING: the checkpoint" in begun.output()
        assert "continuing from iteration 18" in begun.output()
    assert re.search(f"successfully loaded .* at iteration {18 if message else 20}", begun.output())
    assert record(half) == record(undisturbed)


def test_checkpoints_that_are_not_mounted(flags, half, tmp_path):
    """On this node. Megatron would begin anew, and our record with it."""
    before = (half / METRICS_FILE).read_bytes()
    (half / "checkpoints").rename(tmp_path / "scratch")
    (half / "checkpoints").symlink_to(tmp_path / "elsewhere")
    begun = start(flags, half)
    assert begun.end() == 1
    assert f"error: {half}/checkpoints links to {tmp_path}/elsewhere, which is not there" in begun.output()
    assert (half / METRICS_FILE).read_bytes() == before
    (tmp_path / "scratch").rename(tmp_path / "elsewhere")
    finish(flags, half)


def test_a_checkpoint_that_was_asked_for_is_not_replaced(flags, half, tmp_path):
    """By --ckpt-step, or as the first weights: also where only a checksum is wrong, which is found later."""
    flip(half / "checkpoints" / "iter_0000020")
    begun = start(flags, half, "--ckpt-step", "20")
    assert begun.end() == 1
    advice = "The newest whole one is iteration 18: continue from it with --ckpt-step 18"
    assert advice in begun.output() and advice in judge(half)[1]
    begun = start(flags, tmp_path / "child", "--pretrained-checkpoint", str(half / "checkpoints"))
    assert begun.end() == 1
    assert f"iteration 18: write 18 into {half}/checkpoints/latest" in begun.output()


def test_a_tracker_that_holds_something_else(flags, undisturbed, half):
    """Megatron would end on it without an error, even where --ckpt-step tells what to load."""
    (half / "checkpoints" / TRACKER).write_text("12x")
    begun = start(flags, half)
    assert begun.end() == 1 and "continue from it with --ckpt-step 20" in begun.output()
    finish(flags, half, "--ckpt-step", "20")
    assert record(half) == record(undisturbed)


def test_falling_back_in_a_run_with_first_weights(flags, half, tmp_path):
    """They are not looked for at the iteration of the run's own checkpoint."""
    run = tmp_path / "child"
    more = ["--pretrained-checkpoint", str(half / "checkpoints"), "--eval-interval", "100"]
    short = ["--train-iters", "4", "--lr-decay-iters", "40"]
    assert start(flags, run, *more, *short).end() == 0
    whole = record(run)
    tear(run / "checkpoints" / "iter_0000004")
    again = start(flags, run, *more, *short)
    assert again.end() == 0, again.output()[-3000:]
    assert "continuing from iteration 2" in again.output()
    assert record(run) == whole


def contents(run: Path) -> dict[str, bytes]:
    """All but the index caches, which may grow."""
    files = [file for file in run.rglob("*") if file.is_file() and file.parent.name != "index-cache"]
    return {str(file): file.read_bytes() for file in files}


def test_an_evaluation_leaves_the_run_alone(flags, half):
    """--skip-train: no record, no status, no lock; the run's newest checkpoint, in its folder."""
    before = contents(half)
    begun = start(flags, half, "--skip-train")
    assert begun.end() == 0, begun.output()[-3000:]
    assert "validation loss at iteration 20 on validation set" in begun.output()
    assert contents(half) == before


def test_all_checkpoints_damaged(flags, half):
    before = (half / METRICS_FILE).read_bytes()
    for folder in (half / "checkpoints").glob("iter_*"):
        tear(folder)
    begun = start(flags, half)
    assert begun.end() == 1
    assert "There is no whole checkpoint in" in begun.output()
    assert (half / METRICS_FILE).read_bytes() == before


def test_a_save_starts_no_process(flags, tmp_path):
    """Megatron's would, for a queue that asynchronous saves share, and import the program there again."""
    run = tmp_path / "run"
    begun = start(flags, run)
    assert begun.wait_for(lambda: len(folders(run)) >= 2)
    assert begun.children() == []
    assert begun.end() == 0, begun.output()[-3000:]


def test_keep_last_checkpoints(flags, tmp_path):
    run = tmp_path / "run"
    begun = start(flags, run, "--train-iters", "12", "--keep-last-checkpoints", "2")
    assert begun.end() == 0, begun.output()[-3000:]
    assert sorted(folders(run)) == ["iter_0000010", "iter_0000012"]
    begun = start(flags, run, "--keep-last-checkpoints", "1")
    assert begun.end() == 1
    assert "would leave nothing to fall back on" in begun.output()


def test_a_second_job_is_refused(flags, tmp_path):
    run = tmp_path / "run"
    first = start(flags, run)
    first.wait_for(lambda: bool(folders(run)))
    first.send(signal.SIGSTOP)  # it might be done before the second asks
    second = Start([*flags, "--run-dir", str(run)], tmp_path / "second.log")
    assert second.end() == 1
    assert "is being written by another job (host" in second.output()
    first.send(signal.SIGCONT)
    assert first.end() == 0
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


@pytest.mark.parametrize("saving", ["sync", "async"])
def test_a_full_disk(flags, undisturbed, saving, small_disk, tmp_path):
    """The save fails with the reason; the checkpoint before it is whole, and with room the run goes on."""
    disk = small_disk(3)
    run = disk / "run"
    more = ["--async-save"] if saving == "async" else []
    kind = FreshStart if more else Start
    begun = kind([*flags, *more, "--run-dir", str(run)], tmp_path / "full.log")
    assert begun.end() != 0
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


def test_a_missing_data_shard(flags, half, tmp_path):
    copy_data(flags, tmp_path).with_suffix(".bin").unlink()
    begun = start(flags, half, "--data-path", str(tmp_path / "data"))
    assert begun.end() == 1
    assert f"{tmp_path / 'data.bin'} of --data-path is missing" in begun.output()
    assert judge(half)[0] == FAILED
    finish(flags, half)


@pytest.mark.parametrize("end", [".idx", ".bin"])
def test_a_torn_data_shard(flags, half, end, tmp_path):
    """Megatron would end in numpy's words, or be killed by SIGBUS."""
    data = copy_data(flags, tmp_path)
    size = os.path.getsize(f"{data}{end}")
    os.truncate(f"{data}{end}", size - 10)
    begun = start(flags, half, "--data-path", str(data))
    assert begun.end() == 1
    message = f"{data}{end} of --data-path ends after {size - 10} of {size} bytes"
    assert message in begun.output() and message in judge(half)[1]
    os.truncate(f"{data}.idx", 20)
    begun = start(flags, half, "--data-path", str(data))
    assert begun.end() == 1 and "data.idx of --data-path ends after 20 of 34 bytes" in begun.output()


def test_data_that_were_replaced_get_new_index_caches(flags, tmp_path):
    """Megatron knows its caches by the path of the data alone."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    data, run = copy_data(flags, tmp_path), tmp_path / "run"
    more = ["--data-path", str(data), "--train-iters", "8"]
    assert start(flags, run, *more, "--exit-interval", "4").end() == 0
    others = IndexedDatasetBuilder(f"{data}.bin", dtype=np.uint16)
    for _ in range(30):  # half as many documents
        others.add_document(np.arange(200), [200])
    others.finalize(f"{data}.idx")
    begun = start(flags, run, *more)
    assert begun.end() == 0, begun.output()[-3000:]
    assert f"WARNING: {data} was replaced since the last start of this run" in begun.output()
    assert start(flags, run, *more).end() == 0
    assert begun.output().count("was replaced") == 1


def test_a_world_size_that_does_not_fit(flags, half):
    begun = start(flags, half, "--tensor-model-parallel-size", "2")
    assert begun.end() == 1
    assert "error: Megatron refuses these flags: world size (1)" in begun.output()
    finish(flags, half)


def test_a_torn_index_cache_is_made_again(flags, undisturbed, half):
    for file in (half / "index-cache").glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-8])
    finish(flags, half)
    assert record(half) == record(undisturbed)


def test_nan_ends_with_megatrons_verdict(flags, tmp_path):
    """Megatron's rerun machine computes a NaN again, saves, and asks for another machine; after three starts
    that got no further it is not queued again.
    """
    run = tmp_path / "run"
    codes = [UNFINISHED]
    while codes[-1] == UNFINISHED:
        begun = start(flags, run, "--lr", "1e30", "--clip-grad", "0", "--save-interval", "1")
        assert begun.end() != 0
        assert "found NaN in local" in begun.output()
        codes.append(judge(run)[0])
    assert codes == [UNFINISHED] * 4 + [FAILED]
    assert "rerun machine" in judge(run)[1]
    # Saved in the place of the checkpoint of the same iteration, and loaded from there.
    assert "Getting RerunStateMachine state from checkpoint" in begun.output()
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
    more = ["--lr", "1e30", "--clip-grad", "0", "--save-interval", "1", "--run-dir", str(tmp_path / "run")]
    (end,) = world.run(dies_saving_again, [*flags, *more])
    assert end == "died while saving"
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    (damage,) = world.run(damage_in, tmp_path / "run" / "checkpoints" / f"iter_{newest:07d}")
    assert newest > 0 and damage == ""


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


def test_looking_for_spikes_changes_nothing(flags, undisturbed, tmp_path):
    """Over more losses than the hundred from which Megatron judges."""
    run = tmp_path / "run"
    watched = start(flags, run, "--check-for-spiky-loss")
    assert watched.end() == 0, watched.output()
    assert "Spiky loss" not in watched.output()
    assert record(run) == record(undisturbed)


def test_a_finished_run_that_is_started_again_is_left_alone(flags, tmp_path):
    """Also where its last iteration is no multiple of --save-interval."""
    run = tmp_path / "run"
    more = ["--train-iters", "7", "--save-interval", "5"]
    assert start(flags, run, *more).end() == 0
    last = run / "checkpoints" / "iter_0000007" / ".metadata"
    before = record(run), last.stat().st_mtime_ns
    again = start(flags, run, *more)
    assert again.end() == 0, again.output()[-3000:]
    assert (record(run), last.stat().st_mtime_ns) == before
    assert judge(run)[0] == 0


def out_of_memory(run: Path) -> str:
    """What a training says for which there is no room on the GPU."""
    import contextlib
    import io
    from argparse import Namespace

    import torch

    from phd.model.survival import RunGuard, explain

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


def test_another_schedule_is_refused(flags, half):
    begun = start(flags, half, "--train-iters", "50")
    assert begun.end() == 1
    assert "or --override-opt-param-scheduler to change it on purpose" in begun.output()
    assert judge(half)[0] == FAILED


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


def test_one_wandb_run_for_all_starts(flags, tmp_path):
    """Offline: three starts, one id, no step sent twice, and no key in any file."""
    run = tmp_path / "group" / "run"
    run.parent.mkdir()
    secret = "0123456789abcdef0123456789abcdef01234567"
    wandb = {"WANDB_MODE": "offline", "WANDB_API_KEY": secret, "WANDB_SILENT": "true"}
    more = ["--wandb-project", "phd", "--save-interval", "10"]
    for number in (signal.SIGKILL, signal.SIGTERM, None):
        begun = start(flags, run, *more, **wandb)
        if number:
            goal = 15 if number == signal.SIGKILL else 25
            begun.wait_for(lambda: f"iteration       {goal}/" in begun.output())  # noqa: B023
            begun.send(number)
        begun.end()
    assert judge(run)[0] == 0, begun.output()[-3000:]
    sent: list[int] = []
    ids = set()
    for folder in sorted((run / "wandb").glob("offline-run-*")):
        ids.add(folder.name.rpartition("-")[2])
        sent += wandb_steps(folder)
    assert ids == {json.loads((run / "wandb.json").read_text())["id"]}
    assert len(set(sent)) == len(sent)
    assert set(sent) <= set(range(1, 41))
    assert len(sent) >= 20  # W&B's own process writes a little later: what a kill took is in metrics.jsonl
    for file in run.rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file
    assert secret not in begun.output()


def test_the_process_of_wandb_is_killed(flags, undisturbed, tmp_path):
    """The training and its saves go on without it, and the next start sends what W&B missed."""
    run = tmp_path / "run"
    offline = {"WANDB_MODE": "offline", "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
    more = ["--wandb-project", "phd"]
    begun = start(flags, run, *more, **offline)
    assert begun.wait_for(lambda: "iteration       15/" in begun.output())
    begun.kill_wandb()
    assert begun.end() == 0, begun.output()[-3000:]
    assert judge(run)[0] == 0 and record(run) == record(undisturbed)
    lost = json.loads((run / "wandb.json").read_text())["lost"]
    assert f"WARNING: W&B gets nothing from iteration {lost} on" in begun.output()
    (before,) = (run / "wandb").glob("offline-run-*")
    again = start(flags, run, *more, **offline)
    assert again.end() == 0, again.output()[-3000:]
    (after,) = {*(run / "wandb").glob("offline-run-*")} - {before}
    assert wandb_steps(after) == [*range(lost, 41)]
    assert "lost" not in json.loads((run / "wandb.json").read_text())


def wandb_steps(folder: Path) -> list[int]:
    """The steps that an offline run holds, read by W&B's own tool."""
    done = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [line["history"]["step"]["num"] for line in lines if line.get("type") == "history"]


@pytest.mark.slow
def test_a_hung_rank_is_named(flags, tmp_path):
    """The other waits for a minute, then says in which collective, and who has said nothing."""
    run = tmp_path / "run"
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(free_port())}
    more = ["--run-dir", str(run), "--train-iters", "400", "--distributed-timeout-minutes", "1"]
    ranks = [
        Start([*flags, *more], tmp_path / f"rank{rank}.log", RANK=str(rank), LOCAL_RANK=str(rank), **both)
        for rank in (0, 1)
    ]
    ranks[0].wait_for(lambda: bool(folders(run)))
    ranks[1].send(signal.SIGSTOP)
    try:
        assert ranks[0].end() == 1
        assert re.search(
            r"error: rank 0 waited in vain in \w+ called at \w+\.py:\d+; no word from rank\(s\) 1",
            ranks[0].output(),
        )
        code, line = judge(run)
        assert code == UNFINISHED
        assert "no word from rank(s) 1: hung or dead" in line
    finally:
        ranks[1].send(signal.SIGKILL)
        ranks[1].end()

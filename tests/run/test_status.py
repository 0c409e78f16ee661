"""phd status: whether a job is queued again."""

import json
import subprocess
import sys

import pytest

from phd.commands.cli import main
from phd.run.status import FAILED, FINISHED, FRUITLESS_STARTS, TRACKER, UNFINISHED, RunStatus, judge, refused
from tests.world import ROOT


@pytest.fixture
def status(tmp_path) -> RunStatus:
    (tmp_path / "checkpoints").mkdir()
    return RunStatus(tmp_path, tmp_path / "checkpoints")


def save(status, iteration):
    (status.checkpoints / TRACKER).write_text(str(iteration))


def test_finished(status, tmp_path):
    status.started(100, "pretrain_phd.py")
    save(status, 100)
    status.ended("finished")
    assert judge(tmp_path) == (FINISHED, "finished; checkpoint at iteration 100 of 100")


def test_interrupted(status, tmp_path):
    status.started(100, "pretrain_phd.py")
    save(status, 40)
    status.ended("interrupted", "SIGUSR1")
    code, line = judge(tmp_path)
    assert code == UNFINISHED == 75
    assert line.startswith("interrupted: SIGUSR1; checkpoint at iteration 40 of 100")


def test_iterations_that_megatron_counts_later(status, tmp_path):
    """With --train-samples; the next start does not know them at first either."""
    status.started(None, "pretrain_phd.py")
    assert judge(tmp_path)[1].endswith("; checkpoint at iteration 0")
    status.counted(100)
    assert judge(tmp_path)[1].endswith("; checkpoint at iteration 0 of 100")
    status.started(None, "pretrain_phd.py")
    assert judge(tmp_path)[1].endswith("; checkpoint at iteration 0 of 100")


def test_failed_for_good(status, tmp_path):
    status.started(100, "pretrain_phd.py")
    status.ended("failed", "the disk is full")
    status.ended("interrupted", "another rank's SIGTERM")  # comes later and must not hide it
    assert judge(tmp_path) == (FAILED, "failed: the disk is full; checkpoint at iteration 0 of 100")


def test_killed_runs_start_again_as_long_as_they_get_on(status, tmp_path):
    for iteration in (10, 20, 30):
        status.started(100, "pretrain_phd.py")
        save(status, iteration)
        assert judge(tmp_path)[0] == UNFINISHED


def test_dying_again_and_again_without_progress_ends(status, tmp_path):
    save(status, 10)
    codes = []
    for _ in range(FRUITLESS_STARTS):
        status.started(100, "pretrain_phd.py")
        status.died("RuntimeError: Connection closed by peer")
        codes.append(judge(tmp_path)[0])
    assert codes == [UNFINISHED, UNFINISHED, FAILED]
    assert "3 times in a row without a new checkpoint: RuntimeError" in judge(tmp_path)[1]


@pytest.mark.parametrize("ends", [["interrupted"] * 3, ["interrupted", "died", "interrupted"]])
def test_starts_that_did_nothing_end_however_they_ended(status, tmp_path, ends):
    """A job script would queue them for ever: stopped by a flag, by a signal before the first save, dead."""
    save(status, 10)
    codes = []
    for end in ends:
        status.started(100, "pretrain_phd.py")
        if end == "died":
            status.died("RuntimeError: Connection closed by peer")
        else:
            status.ended("interrupted", "stopped by an --exit- flag")
        codes.append(judge(tmp_path)[0])
    assert codes == [UNFINISHED, UNFINISHED, FAILED]
    assert judge(tmp_path)[1].startswith(
        "interrupted 3 times in a row without a new checkpoint: stopped by an"
    )


@pytest.mark.parametrize("between", ["progress", "failed", "finished"])
def test_what_ends_a_row_of_fruitless_starts(status, tmp_path, between):
    """A new checkpoint; and an end after which a person has looked into it."""
    for number in range(2 * FRUITLESS_STARTS):
        status.started(100, "pretrain_phd.py")
        if number % 2:
            save(status, number) if between == "progress" else status.ended(between)
        else:
            status.ended("interrupted")
            assert judge(tmp_path)[0] == UNFINISHED


def test_a_refused_start(status, tmp_path):
    """It is told of a run that is there, unless another job is at work in it; no run begins by it."""
    refused(tmp_path, "the checkpoint has --num-layers 2")
    assert not (tmp_path / "status.json").exists()
    status.started(100, "pretrain_phd.py")
    status.ended("interrupted", "SIGTERM")
    refused(tmp_path, "the checkpoint has --num-layers 2")
    assert judge(tmp_path) == (
        FAILED,
        "failed: the checkpoint has --num-layers 2; checkpoint at iteration 0 of 100",
    )
    status.started(100, "pretrain_phd.py")
    child = subprocess.run(
        [sys.executable, "-c", HOLDS, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert child.stdout == "running\n"


HOLDS = """
import json, os, sys
from pathlib import Path
from phd.run.lock import RunLock
from phd.run.status import refused
folder = Path(sys.argv[1])
lock = RunLock(folder)
if not (child := os.fork()):
    refused(folder, "another model")
    os._exit(0)
os.waitpid(child, 0)
print(json.loads((folder / "status.json").read_text())["state"])
"""


def test_a_run_that_was_moved(tmp_path):
    """Also one that is seen at another path, as from outside a container."""
    status = RunStatus(tmp_path / "run", tmp_path / "run" / "checkpoints")
    status.checkpoints.mkdir(parents=True)
    status.started(100, "pretrain_phd.py")
    save(status, 40)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert "checkpoint at iteration 40 of 100" in judge(tmp_path / "moved")[1]


def test_checkpoints_elsewhere(tmp_path):
    (tmp_path / "run").mkdir()
    status = RunStatus(tmp_path / "run", tmp_path / "elsewhere")
    status.checkpoints.mkdir()
    status.started(100, "pretrain_phd.py")
    save(status, 40)
    assert "checkpoint at iteration 40 of 100" in judge(tmp_path / "run")[1]


def test_a_file_that_was_not_written_by_a_run(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "running"}')
    with pytest.raises(ValueError, match=r"status.json lacks reason, .*checkpoints: remove it"):
        judge(tmp_path)


def test_every_start_is_listed(status, tmp_path):
    status.started(100, "first")
    status.started(100, "second")
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [start["command"] for start in starts] == ["first", "second"]


def test_the_command(status, tmp_path, capsys):
    status.started(100, "pretrain_phd.py")
    line = {"kind": "train", "iteration": 3, "tokens": 192, "flops": 1.0, "lm loss": 2.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["status", str(tmp_path)]) == UNFINISHED
    assert "train at iteration 3 (192 tokens): lm loss 2.5" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "nothing")]) == 2

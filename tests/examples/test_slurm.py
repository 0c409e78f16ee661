"""examples/slurm on a real cluster of this machine: trainings that are signalled, requeued, killed and cut
short by their time limit, and a sweep from training to plot.
"""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from phd.run.record import METRICS_FILE, read_lines
from phd.run.status import judge
from tests.examples.conftest import TINY, run_folder
from tests.runs import record
from tests.world import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
PATIENCE_S = 600
"""A start that takes longer hangs."""
VARIANT = "PHD-CSWA-2-16-32"
ITERATIONS = 120
LONG = [*TINY, "--train-iters", str(ITERATIONS), "--save-interval", "25", "--eval-interval", "50"]


def submit(slurm, environment, runs: Path, *flags: str, variant: str = VARIANT, **more: str) -> str:
    """Queue a training on two nodes; returns the job id."""
    settings = environment | {"RUNS": str(runs), "NNODES": "2", "TRAIN_SBATCH": "--mem=0"} | more
    return slurm.run(str(ROOT / "examples/slurm/submit.sh"), "300k", variant, *flags, **settings).strip()


def log(run: Path) -> str:
    return "".join(file.read_text(errors="replace") for file in sorted(run.glob("job-*.log")))


def wait_until(slurm, run: Path, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, log(run)[-3000:] + slurm.run("squeue")
        time.sleep(0.1)


def wait_for_iteration(slurm, run: Path, iteration: int) -> None:
    """Until the run has recorded it, and is not at its end."""
    wait_until(slurm, run, lambda: newest(run) >= iteration)
    assert newest(run) < ITERATIONS, "it was over before anything could happen to it"


def newest(run: Path) -> int:
    file = run / METRICS_FILE
    return max((line["iteration"] for line in read_lines(file)), default=0) if file.exists() else 0


def starts(run: Path) -> list[dict]:
    file = run / "starts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_start(slurm, run: Path, number: int) -> None:
    def started() -> bool:
        slurm.heal()
        return len(starts(run)) >= number

    wait_until(slurm, run, started)


@pytest.fixture(scope="module")
def undisturbed(slurm, environment, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    submit(slurm, environment, runs, *LONG)
    slurm.wait()
    run = run_folder(runs, VARIANT)
    assert judge(run)[0] == 0, log(run)[-4000:]
    return run


def assert_as_undisturbed(run: Path, undisturbed: Path, count: int) -> None:
    """Done in so many starts, and its record is that of the run that nothing happened to, bit for bit."""
    assert judge(run)[0] == 0, log(run)[-4000:]
    assert record(run) == record(undisturbed)
    assert len(starts(run)) == count


def test_two_nodes_train_from_the_snapshot(undisturbed):
    """The run folder tells what ran: code, command, git state, every start."""
    about = json.loads((undisturbed / "phd_run.json").read_text())
    assert about["world_size"] == 2
    assert str(undisturbed / "code" / "pretrain_phd.py") in about["command"]
    assert "commit" in (undisturbed / "code" / "GIT_STATE").read_text()
    assert "pretrain.sh" in (undisturbed / "launch.sh").read_text()
    assert len(starts(undisturbed)) == 1
    iterations = [line["iteration"] for line in record(undisturbed) if line["kind"] == "train"]
    assert iterations == [*range(1, ITERATIONS + 1)]


def test_signal_requeue_and_a_lost_rank(slurm, environment, undisturbed, tmp_path):
    """One job through both."""
    job = submit(slurm, environment, tmp_path, *LONG)
    run = run_folder(tmp_path, VARIANT)

    wait_for_iteration(slurm, run, 10)
    slurm.run("scancel", "--signal=USR1", job)
    wait_for_start(slurm, run, 2)
    assert "SIGUSR1: saving and ending after this iteration" in log(run)
    assert "queueing again" in log(run)

    wait_for_iteration(slurm, run, newest(run) + 5)
    os.kill(starts(run)[-1]["pid"], signal.SIGKILL)  # rank 0
    wait_for_start(slurm, run, 3)  # torchrun's own restart
    assert "start 3" not in log(run)
    slurm.wait()
    assert_as_undisturbed(run, undisturbed, 3)


@pytest.mark.slow
def test_requeue_and_a_lost_node(slurm, environment, undisturbed, tmp_path):
    """One job through both."""
    job = submit(slurm, environment, tmp_path, *LONG)
    run = run_folder(tmp_path, VARIANT)

    wait_for_iteration(slurm, run, 30)
    slurm.run("scontrol", "requeue", job)
    wait_for_start(slurm, run, 2)

    wait_for_iteration(slurm, run, newest(run) + 5)
    slurm.lose_node("n1")
    wait_for_start(slurm, run, 3)
    slurm.wait()
    assert_as_undisturbed(run, undisturbed, 3)


@pytest.mark.slow
def test_time_limit(slurm, environment, undisturbed, tmp_path):
    """SLURM's signal before the limit saves, and the job queues itself again until it is done."""
    job = submit(slurm, environment, tmp_path, *LONG, SIGNAL_SECONDS="90")
    run = run_folder(tmp_path, VARIANT)
    wait_for_iteration(slurm, run, 10)
    # SLURM looks every 30 s whether a signal is due, and the other iterations take less: rank 0 stops for it
    rank_0 = starts(run)[-1]["pid"]
    os.kill(rank_0, signal.SIGSTOP)
    # due now, or in half a minute; the limit is more than a minute off
    minutes = slurm.seconds(job) // 60 + 2
    slurm.run("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")
    wait_until(slurm, run, lambda: "closing signal SIGUSR1" in log(run))  # torchrun's
    with contextlib.suppress(ProcessLookupError):  # SLURM's signal may have woken it
        os.kill(rank_0, signal.SIGCONT)
    wait_until(slurm, run, lambda: "queueing again" in log(run))
    slurm.run("scontrol", "update", f"jobid={job}", "timelimit=60")
    slurm.wait()
    assert "SIGUSR1: saving and ending after this iteration" in log(run)
    assert_as_undisturbed(run, undisturbed, 2)


@pytest.mark.slow
def test_pipeline_over_two_nodes(slurm, environment, tmp_path):
    flags = [*TINY, "--train-iters", "4", "--pipeline-model-parallel-size", "2"]
    submit(slurm, environment, tmp_path, *flags)
    slurm.wait()
    run = run_folder(tmp_path, VARIANT)
    assert judge(run)[0] == 0, log(run)[-4000:]


@pytest.mark.slow
def test_cancelled_is_not_queued_again(slurm, environment, tmp_path):
    job = submit(slurm, environment, tmp_path, *LONG)
    run = run_folder(tmp_path, VARIANT)
    wait_for_iteration(slurm, run, 5)
    slurm.run("scancel", job)
    slurm.wait()
    assert len(starts(run)) == 1
    assert "queueing again" not in log(run)


def test_a_bad_flag_is_not_queued_again(slurm, environment, tmp_path):
    flags = [*TINY, "--train-iters", "4", "--phd-window", "0"]
    submit(slurm, environment, tmp_path, *flags, NNODES="1")
    slurm.wait()
    run = run_folder(tmp_path, VARIANT)
    assert "--variant PHD-CSWA-2-16-32 says what --phd-window says: leave one out" in log(run)
    assert "queueing again" not in log(run)


@pytest.mark.slow
def test_sweep_from_text_to_plot(slurm, environment, tmp_path):
    """One chain of jobs: an array tokenizes, one merges; each variant trains, exports, evaluates; the last
    compares.
    """
    corpus = tmp_path / "held_out.jsonl"
    corpus.write_text(
        "".join(json.dumps({"text": f"def f{i}(x): return x + {i}\n" * 20}) + "\n" for i in range(20))
    )
    settings = {
        "INPUT": str(Path(environment["TOKENIZER_MODEL"]).with_name("source.txt")),
        "OUTPUT_PREFIX": str(tmp_path / "data" / "source"),
        "TASKS": "2",
        "CPUS": "1",
    }
    (tmp_path / "data").mkdir()
    queued = slurm.run(
        str(ROOT / "examples/tokenize_slurm.sh"), "--document-separator", "=", "--unit-bytes", "100000",
        **environment | settings,
    )  # fmt: skip
    merge = re.search(r"then job (\d+) merges", queued)
    assert merge is not None, queued
    settings = {
        "DATA_PREFIX": str(tmp_path / "data" / "source"),
        "RUNS": str(tmp_path / "runs"),
        "EVAL_CORPUS": str(corpus),
        "TRAIN_FLAGS": " ".join([*TINY, "--train-iters", "4", "--eval-interval", "2"]),
        "TRAIN_SBATCH": f"--mem=0 --dependency=afterok:{merge[1]}",
        "AFTER_SBATCH": "--mem=0",
    }
    output = slurm.run(
        str(ROOT / "examples/slurm/sweep.sh"), "300k", "vanilla", VARIANT, **environment | settings
    )
    assert output.count("train") == 2
    slurm.wait()
    for variant in ("vanilla", VARIANT):
        run = run_folder(tmp_path / "runs", variant)
        assert judge(run)[0] == 0, log(run)[-4000:]
        assert "word_perplexity" in (run / "eval.json").read_text()
    comparison = json.loads((tmp_path / "runs" / "comparison.json").read_text())
    assert VARIANT in json.dumps(comparison)
    assert (tmp_path / "runs" / "comparison.html").exists()

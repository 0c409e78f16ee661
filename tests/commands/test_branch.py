"""`phd branch`: one checkpoint is continued as several variants, on the same batches."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phd.commands.cli import main
from phd.run.branches import Branch, Trunk, plan
from phd.run.record import BRANCH_FILE, RUN_FILE
from tests.examples.warm import WarmPython, warm_python
from tests.runs import record
from tests.trainings import MODEL, TRAINING, data_flags, write_documents
from tests.world import run_pretrain

BEGIN, SHORT, LONG = 4, 2, 5
PHD = "PHD-CSWA-2-4-8"
SEED = 7  # the trunk's, of TRAINING
# As the scripts train; a validation in the middle of a branch and one at its end.
FLAGS = shlex.split("""
    --lr-warmup-iters 2 --use-distributed-optimizer --dist-ckpt-optim-fully-reshardable
    --eval-interval 5 --save-interval 100 --global-batch-size 4
""")


@pytest.fixture(scope="module")
def trunk(world, tmp_path_factory) -> Trunk:
    """Trained on a data set of 24 samples: 6 of its batches are an epoch."""
    prefix = tmp_path_factory.mktemp("few") / "few"
    rng = np.random.default_rng(0)
    write_documents(prefix, [rng.integers(0, 250, 20, dtype=np.uint8) for _ in range(55)])
    run = tmp_path_factory.mktemp("trunk") / "trunk"
    flags = [*MODEL, *TRAINING, *data_flags(prefix), *FLAGS, "--train-iters", str(BEGIN)]
    world.pretrain([*flags, "--run-dir", str(run)])
    return Trunk.read(run)


def batches_of(flags: list[str]) -> list[str]:
    """In a rank: a training with these flags, and a digest of each of its training batches' tokens."""
    import pretrain_phd

    seen = []
    original = pretrain_phd.forward_step

    def forward_step(data_iterator, model):
        if not model.training:
            return original(data_iterator, model)
        batch = next(data_iterator)
        seen.append(hashlib.sha256(batch["tokens"].numpy().tobytes()).hexdigest())
        return original(iter([batch]), model)

    pretrain_phd.forward_step = forward_step
    try:
        run_pretrain(flags)
    finally:
        pretrain_phd.forward_step = original
    return seen


def family(trunk: Trunk, output: Path, iterations: int, orders: list[int], *variants: str) -> list[Branch]:
    branches = plan(trunk, variants, orders, iterations=iterations, longest=LONG, output=output)
    for branch in branches:
        branch.prepare(trunk.digest(), ["pretrain_phd.py"], [], {})
    return branches


@pytest.fixture(scope="module")
def branches(world, trunk, tmp_path_factory) -> dict[tuple[str, int, int], tuple[Branch, list[str]]]:
    """By variant, order and length: a branch that has been trained, and its batches."""
    output = tmp_path_factory.mktemp("branches")
    runs = family(trunk, output / "short", SHORT, [SEED, 2], "vanilla", PHD)
    runs += family(trunk, output / "long", LONG, [SEED], "vanilla")
    return {
        (run.variant, run.order, run.iterations): (run, world.run(batches_of, run.flags())[0]) for run in runs
    }


def test_branches_of_an_order_see_the_same_batches(branches):
    """Whatever the variant and the length; Megatron would order the data of each length anew."""
    batches = {key: seen for key, (_, seen) in branches.items()}
    micro_batches = 2  # of an iteration
    for order in (SEED, 2):
        assert len(batches["vanilla", order, SHORT]) == SHORT * micro_batches
        assert batches["vanilla", order, SHORT] == batches[PHD, order, SHORT]
    assert batches["vanilla", SEED, LONG][: SHORT * micro_batches] == batches["vanilla", SEED, SHORT]
    assert not {*batches["vanilla", SEED, SHORT]} & {*batches["vanilla", 2, SHORT]}


def test_without_data_iters_the_lengths_differ(world, trunk, branches, tmp_path):
    """What the test above would not notice on data that last for an epoch."""
    (run,) = plan(trunk, ["vanilla"], [SEED], iterations=SHORT, longest=None, output=tmp_path)
    run.prepare(trunk.digest(), ["pretrain_phd.py"], [], {})
    assert "--data-iters" not in run.flags()
    (seen,) = world.run(batches_of, run.flags())
    assert seen != branches["vanilla", SEED, SHORT][1]


def test_a_vanilla_branch_is_the_trunk_trained_on(world, trunk, branches, tmp_path):
    """Bit for bit, with Adam's moments, counts and validations."""
    on = Path(shutil.copytree(trunk.folder, tmp_path / "on"))
    schedule = f"--train-iters {BEGIN + LONG} --lr-decay-style WSD --lr-wsd-decay-style linear --min-lr 0"
    schedule += f" --lr-wsd-decay-iters {LONG} --lr-warmup-iters 2 --seed {SEED}"
    more = [*schedule.split(), "--override-opt-param-scheduler", "--run-dir", str(on)]
    world.pretrain([*trunk.flags, *more])
    expected = [line for line in record(on) if line["iteration"] > BEGIN]
    branch, _ = branches["vanilla", SEED, LONG]
    assert record(branch.folder) == expected
    trained = [line for line in expected if line["kind"] == "train"]
    rates = [line["learning-rate"] for line in trained]
    # Logged after an iteration, for the next one: the first of the branch has the trunk's.
    assert rates == pytest.approx([2e-3 * (1 - step / LONG) for step in range(1, LONG + 1)])
    assert [line["iteration"] for line in expected if line["kind"] == "validation"] == [5, 9]


def test_a_branch_says_where_it_comes_from(trunk, branches):
    branch, _ = branches[PHD, 2, SHORT]
    about = json.loads((branch.folder / RUN_FILE).read_text())
    last = record(trunk.folder)[-1]
    assert about["branch"] == {
        "trunk": "trunk",
        "checkpoint_sha256": trunk.digest(),
        **{"iteration": BEGIN, "order": 2, "iterations": SHORT, "longest": LONG},
        **{"tokens": last["tokens"], "flops": last["flops"]},
    }
    assert (about["name"], about["seed"], about["train_iters"]) == (PHD, 2, BEGIN + SHORT)
    first = record(branch.folder)[0]
    assert first["iteration"] == BEGIN + 1
    # The trunk's tokens cost what they cost there.
    spent = (first["tokens"] - last["tokens"]) * about["flops_per_token"]
    assert first["flops"] == pytest.approx(last["flops"] + spent)
    assert about["flops_per_token"] > last["flops"] / last["tokens"]


def test_a_family_is_compared(branches, tmp_path, capsys):
    short = branches["vanilla", 2, SHORT][0].folder.parent
    assert main(["compare", str(short), "--output", str(tmp_path / "family")]) == 0
    groups = json.loads((tmp_path / "family.json").read_text())["groups"]
    assert [(group["name"], group["seeds"]) for group in groups] == [("vanilla", [2, SEED]), (PHD, [2, SEED])]
    assert groups[1]["validation_difference"]["n"] == 2
    assert 0 <= groups[1]["validation_difference"]["p"] <= 1
    long = str(branches["vanilla", SEED, LONG][0].folder)
    assert main(["compare", str(short), long, "--output", str(tmp_path / "mixed")]) == 2
    assert "--vary train-iters" in capsys.readouterr().err


@pytest.fixture
def warm(world, monkeypatch) -> Iterator[WarmPython]:
    with warm_python(world) as python:
        monkeypatch.setenv("PYTHON", str(python.path))
        yield python


def terminated(pid: int, flags: list[str]) -> str:
    """In a rank: a training that sends ``pid`` SIGTERM after an iteration, and waits for its own."""
    from unittest.mock import patch

    from megatron.training import get_signal_handler

    from phd.run.recorder import Recorder

    write = Recorder.write

    def write_and_wait(self: Recorder, kind: str, *args: Any, **kwargs: Any) -> None:
        write(self, kind, *args, **kwargs)
        if kind == "train":
            os.kill(pid, signal.SIGTERM)
            while not any(get_signal_handler().signals_received()):
                time.sleep(0.01)

    with patch.object(Recorder, "write", write_and_wait):
        return run_pretrain(flags)


def test_the_command_passes_over_and_continues(warm, trunk, branches, tmp_path, capsys):
    """The record of a branch that was interrupted half-way equals that of one that was not. A signal to the
    command reaches the training, which saves, and no other branch begins.
    """
    output = tmp_path / "family"
    command = ["branch", str(trunk.folder), "--variants", "vanilla", PHD, "--orders", "2"]
    command += ["--iterations", str(SHORT), "--longest", str(LONG), "--output", str(output)]
    warm.train = partial(terminated, os.getpid())
    assert main(command) == 75
    said = capsys.readouterr().out
    where = f"checkpoint at iteration {BEGIN + 1} of {BEGIN + SHORT}"
    assert f"{output / 'vanilla-order2'}: interrupted: SIGTERM; {where}" in said
    assert len(warm.calls) == 1 and PHD not in said
    warm.train = run_pretrain
    assert main([*command, "--flags", "--exit-interval", str(BEGIN + 1)]) == 75
    said = capsys.readouterr().out
    assert f"{output / f'{PHD}-order2'}: interrupted: stopped by an --exit- flag; {where}" in said
    assert main(command) == 0
    assert len(warm.calls) == 4
    for variant in ("vanilla", PHD):
        assert record(output / f"{variant}-order2") == record(branches[variant, 2, SHORT][0].folder)
    assert main(command) == 0 and main([*command, "--print"]) == 0
    assert len(warm.calls) == 4
    said = capsys.readouterr()
    assert said.err.count("finished already") == 5 and "bash" not in said.out


def test_print_gives_the_commands(trunk, tmp_path, capsys):
    command = ["branch", str(trunk.folder), "--variants", "vanilla", PHD, "--orders", "1", "2", "--print"]
    assert main([*command, "--iterations", "3", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [f"{variant}-order{order}" for order in (1, 2) for variant in ("vanilla", PHD)]
    assert lines == [f"bash {tmp_path}/{name}/launch.sh" for name in names]
    for name in names:
        saved = tmp_path / name / "checkpoints" / "iter_0000004"
        assert {file.name for file in saved.iterdir()} == {file.name for file in trunk.checkpoint.iterdir()}
        assert all(file.stat().st_nlink > 1 for file in saved.iterdir())  # links
        assert (tmp_path / name / BRANCH_FILE).exists()


def test_what_cannot_be_branched(trunk, tmp_path, capsys):
    def refusal(*more: str) -> str:
        command = ["branch", str(trunk.folder), "--output", str(tmp_path), "--print", *more]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    one = ("--variants", "vanilla", "--iterations", "2")
    assert "--nproc-per-node 0 starts nothing" in refusal(*one, "--nproc-per-node", "0")
    assert "has no checkpoint of iteration 3 to branch from" in refusal(*one, "--ckpt-step", "3")
    assert "'vanila' names no variant" in refusal("--variants", "vanila", "--iterations", "2")
    assert not any(tmp_path.iterdir())

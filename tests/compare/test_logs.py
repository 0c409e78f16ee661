import json
import math
from pathlib import Path
from typing import Any

import pytest

from phd.compare.logs import find_runs, read_run
from tests.compare.conftest import ABOUT, record, write_metrics


def write(folder: Path, *lines: str) -> Path:
    (folder / "phd_run.json").write_text(json.dumps(ABOUT))
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder / "phd_run.json"


def train(iteration: int, loss: float | None = 3.0, **more: Any) -> str:
    return record("train", iteration, **{"lm loss": loss, **more})


def test_a_branch_counts_from_its_trunk(make_run):
    """Its progress, and the last tenth whose losses are its final one."""
    origin = {"trunk": "t", "checkpoint_sha256": "ab", "iteration": 10}
    for folder, more in (("known", {"tokens": 80}), ("unknown", {})):  # the trunk's record may be lost
        (run,) = find_runs(make_run(folder, iterations=20, train_iters=20, branch=origin | more))
        assert run.progress == 1 and run.first_tokens == 80
        assert run.final_train_loss == pytest.approx(3.0)  # of iteration 20 alone
    (run,) = find_runs(make_run("half", iterations=15, train_iters=20, branch=origin))
    assert run.progress == 0.5


def test_run_is_read_by_tokens(make_run):
    (run,) = find_runs(make_run("run"))
    assert list(run.train_loss) == [8 * iteration for iteration in range(1, 21)]
    assert run.train_loss[8] == pytest.approx(4.9)
    assert run.validation_loss == pytest.approx({40: 4.75, 80: 4.25, 120: 3.75, 160: 3.25})
    assert run.tokens == run.validated_tokens == 160
    # Iterations 19 and 20 are the last tenth.
    assert run.final_train_loss == pytest.approx((3.1 + 3.0) / 2)
    assert run.final_validation_loss == pytest.approx(3.25)
    assert run.training_flops == 160 * 6000.0
    assert run.metrics["grad-norm"][8] == 2.0
    assert run.throughput == {40: 15.0, 80: 20.0, 120: 25.0, 160: 30.0}
    assert run.tokens_per_second == pytest.approx(22.5)
    assert run.arguments is not None and run.arguments["lr"] == 0.001
    assert run.finished and run.progress == 1


def test_unfinished_run(make_run):
    run = read_run(make_run("run", iterations=12) / "phd_run.json")
    assert not run.finished
    assert run.progress == pytest.approx(0.6)
    assert (run.tokens, run.validated_tokens) == (96, 80)


def test_record_without_validation_or_speed(tmp_path):
    run = read_run(write(tmp_path, train(1)))
    assert run.validation_loss == {}
    assert run.validated_tokens is run.final_validation_loss is run.tokens_per_second is None


def test_other_kinds_are_ignored(tmp_path):
    test = record("test", 1, **{"lm loss test": 9.0, "lm loss validation": 9.0})
    samples = record("samples", 1, samples=[{"prompt": "a", "text": "b"}])
    assert read_run(write(tmp_path, train(1), test, samples)).validation_loss == {}


def test_named_validation_sets(tmp_path):
    losses = {"lm loss validation-wiki": 2.0, "lm loss validation-my code": 4.0}
    noise = {"lm loss validation-wiki ppl": 7.4, "lm loss copy 1 validation-wiki": 9.0}
    run = read_run(write(tmp_path, train(1), record("validation", 1, **losses, **noise)))
    assert run.validation_loss == {8: 3.0}
    assert run.validation_sets == {"wiki": {8: 2.0}, "my code": {8: 4.0}}


def test_original_copy_s_loss_over_named_sets(tmp_path):
    losses = {"lm loss validation-a": 2.0, "lm loss original validation-a": 4.0}
    more = {"lm loss validation-b": 3.0, "lm loss original validation-b": 6.0}
    run = read_run(write(tmp_path, train(1), record("validation", 1, **losses, **more)))
    assert run.validation_loss == {8: 2.5}
    assert run.metrics["lm loss original validation"] == {8: 5.0}
    assert list(run.validation_sets) == ["a", "b"]


def test_rates_that_were_no_number_are_left_out(tmp_path):
    rates = {"phd/tokens-per-second": None, "phd/mfu": None, "learning-rate": 0.5, "other": 1.0}
    run = read_run(write(tmp_path, train(1, **rates)))
    assert run.metrics == {"lm loss": {8: 3.0}, "learning-rate": {8: 0.5}}


def test_seconds_since_the_first_record(tmp_path):
    run = read_run(
        write(tmp_path, train(1), train(2), record("validation", 2, **{"lm loss validation": 2.0}))
    )
    assert run.seconds == {8: 0.0, 16: 1.0}
    without = [line.replace('"time"', '"then"') for line in (train(1), train(2))]
    assert read_run(write(tmp_path, *without)).seconds == {}


def test_samples(tmp_path):
    samples = [{"prompt": "a", "text": "b"}, {"prompt": "c", "text": "d"}]
    run = read_run(write(tmp_path, train(1), record("samples", 1, samples=samples), train(2)))
    assert [(sample.tokens, sample.prompt, sample.text) for sample in run.samples] == [
        (8, "a", "b"),
        (8, "c", "d"),
    ]


def test_loss_of_a_copy_is_not_the_validation_loss(tmp_path):
    losses = {"lm loss copy 1 validation": 9.0, "lm loss validation": 2.0}
    assert read_run(write(tmp_path, train(1), record("validation", 1, **losses))).validation_loss == {8: 2.0}


def test_null_is_not_a_number(tmp_path):
    run = read_run(write(tmp_path, train(1), train(2, None, **{"grad-norm": None})))
    assert math.isnan(run.train_loss[16]) and math.isnan(run.metrics["grad-norm"][16])
    assert math.isnan(run.final_train_loss)


def test_runs_below_a_folder_in_order_of_paths(make_run, tmp_path):
    make_run("b/seed-2")
    make_run("a")
    assert [run.path.name for run in find_runs(tmp_path)] == ["a", "seed-2"]


@pytest.mark.parametrize("name", ["code", "checkpoints", "wandb"])
def test_what_a_run_keeps_beside_its_record_is_no_run(make_run, name):
    make_run(f"run/{name}/tests/old")
    folder = make_run("other").parent
    assert [run.path.name for run in find_runs(folder)] == ["other"]


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; give the --run-dir"):
        find_runs(tmp_path / "nowhere")


def test_folder_without_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no phd_run.json"):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    "metrics", [None, "", record("validation", 1)], ids=["absent", "empty", "validation"]
)
def test_run_without_loss(tmp_path, metrics):
    (tmp_path / "phd_run.json").write_text(json.dumps(ABOUT))
    if metrics is not None:
        (tmp_path / "metrics.jsonl").write_text(metrics)
    with pytest.raises(ValueError, match="no training loss is recorded in .* yet"):
        find_runs(tmp_path)


def test_losses_of_a_written_record(tmp_path):
    (tmp_path / "phd_run.json").write_text(json.dumps(ABOUT))
    write_metrics(tmp_path, {1: 3.0, 2: 2.0}, {2: 2.5}, flops_per_token=10.0)
    run = read_run(tmp_path / "phd_run.json")
    assert (run.train_loss, run.validation_loss) == ({8: 3.0, 16: 2.0}, {16: 2.5})
    assert run.flops == {8: 80.0, 16: 160.0}

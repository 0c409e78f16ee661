"""The record of metrics: one line an iteration, none twice, whatever the kills."""

import json
import math

import pytest

from phd.run.record import METRICS_FILE, read_lines
from phd.run.recorder import Recorder


class Wandb:
    """What the recorder uses of the wandb module."""

    def __init__(self, dies_at=math.inf):
        self.logged: list[tuple[int, dict]] = []
        self.dies_at = dies_at

    def log(self, values, step):
        if step >= self.dies_at:
            raise ConnectionResetError("Connection lost")
        self.logged.append((step, values))

    def Table(self, columns, data):
        return columns, data


def train(folder, first, last, wandb=None, tensorboard=None):
    recorder = Recorder(folder, tensorboard, wandb)
    recorder.resume(first - 1)
    for iteration in range(first, last + 1):
        recorder.add_scalar("lm loss", 10.0 / iteration, iteration)
        recorder.add_scalar("lm loss vs samples", 10.0 / iteration, 8 * iteration)
        recorder.write("train", iteration, 64 * iteration, 1e3 * iteration)
        if iteration % 2 == 0:
            recorder.add_scalar("lm loss validation", 1.0, iteration)
            recorder.write("validation", iteration, 64 * iteration, 1e3 * iteration)
    return recorder


def lines(folder):
    return [{k: v for k, v in line.items() if k != "time"} for line in read_lines(folder / METRICS_FILE)]


def test_lines_hold_the_scalars_once(tmp_path):
    train(tmp_path, 1, 2)
    assert lines(tmp_path) == [
        {"kind": "train", "iteration": 1, "tokens": 64, "flops": 1e3, "lm loss": 10.0},
        {"kind": "train", "iteration": 2, "tokens": 128, "flops": 2e3, "lm loss": 5.0},
        {"kind": "validation", "iteration": 2, "tokens": 128, "flops": 2e3, "lm loss validation": 1.0},
    ]


@pytest.mark.parametrize("checkpoint", [0, 3, 4, 7])
def test_a_run_that_continues_has_the_record_of_one_never_stopped(tmp_path, checkpoint):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    train(whole, 1, 9)
    train(killed, 1, 7)
    with (killed / METRICS_FILE).open("a") as file:
        file.write('{"kind": "train", "iter')  # torn by the kill
    train(killed, checkpoint + 1, 9)
    assert lines(killed) == lines(whole)


def test_a_finished_run_that_is_started_again_repeats_nothing(tmp_path):
    train(tmp_path, 1, 4)
    before = (tmp_path / METRICS_FILE).read_bytes()
    recorder = Recorder(tmp_path)
    recorder.resume(4)
    recorder.add_scalar("lm loss validation", 2.0, 4)
    recorder.write("validation", 4, 256, 4e3)
    assert (tmp_path / METRICS_FILE).read_bytes() == before


def test_the_last_line_that_is_kept_tells_where_to_go_on(tmp_path):
    train(tmp_path, 1, 7)
    assert Recorder(tmp_path).resume(0) is None
    train(tmp_path, 1, 7)
    last = Recorder(tmp_path).resume(4)
    assert (last["kind"], last["iteration"], last["tokens"]) == ("validation", 4, 256)


def test_scalars_of_an_evaluation_that_was_broken_off_are_in_no_line(tmp_path):
    recorder = train(tmp_path, 1, 1)
    recorder.add_scalar("lm loss validation-a", 1.0, 1)
    recorder.forget()
    recorder.write("test", 1, 64, 1e3)
    assert "lm loss test-a" not in lines(tmp_path)[-1]


def test_wandb_gets_no_step_twice_after_two_kills(tmp_path):
    first, second, third = Wandb(), Wandb(), Wandb()
    train(tmp_path, 1, 7, first)
    train(tmp_path, 4, 5, second)  # from the checkpoint at 3, killed again before it gets as far as the first
    train(tmp_path, 4, 9, third)
    assert {step for step, _ in first.logged} == set(range(1, 8))
    assert second.logged == []
    assert [step for step, _ in third.logged] == [8, 8, 9]
    assert third.logged[0][1] == {"tokens": 512, "flops": 8e3, "lm loss": 1.25}


@pytest.mark.parametrize("checkpoint", [2, 5])
def test_what_wandb_missed_the_next_start_sends(checkpoint, tmp_path, capsys):
    """Its process died at iteration 4; the record has all."""
    first, second, third = Wandb(dies_at=4), Wandb(), Wandb()
    train(tmp_path, 1, 7, first)
    assert capsys.readouterr().out.count("W&B gets nothing from iteration 4 on (ConnectionResetError") == 1
    train(tmp_path, checkpoint + 1, checkpoint, second)  # killed before it gets anywhere
    train(tmp_path, checkpoint + 1, 9, third)
    sent = [step for wandb in (first, second, third) for step, _ in wandb.logged]
    assert sent == [line["iteration"] for line in lines(tmp_path)]


def test_missing_iterations_are_told(tmp_path, capsys):
    train(tmp_path, 1, 3)
    train(tmp_path, 6, 7)
    assert "2 of the 5 iterations before are not recorded" in capsys.readouterr().out


def test_numbers_that_are_not_finite_become_null(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.resume(0)
    recorder.add_scalar("lm loss", math.nan, 1)
    recorder.write("train", 1, 64, 1e3)
    assert lines(tmp_path)[0]["lm loss"] is None
    assert "NaN" not in (tmp_path / METRICS_FILE).read_text()


def test_samples_become_a_table_in_wandb(tmp_path):
    wandb = Wandb()
    recorder = Recorder(tmp_path, None, wandb)
    recorder.resume(0)
    rows = [{"prompt": "To be", "text": " or not"}]
    recorder.write("samples", 1, 64, 1e3, samples=rows)
    assert lines(tmp_path)[0]["samples"] == rows
    assert wandb.logged[0][1]["samples"] == (["prompt", "text"], [["To be", " or not"]])


def test_test_loss_is_not_called_validation(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.resume(0)
    recorder.add_scalar("lm loss validation", 2.0, 1)
    recorder.write("test", 1, 64, 1e3)
    assert lines(tmp_path)[0]["lm loss test"] == 2.0


def test_the_rest_of_a_writer_does_nothing_without_one(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.add_text("a", "b", 1)
    recorder.flush()


def test_scalars_reach_tensorboard(tmp_path):
    class Board:
        got: list = []

        def add_scalar(self, *what):
            self.got.append(what)

        def flush(self):
            self.got.append("flush")

    board = Board()
    recorder = train(tmp_path, 1, 1, tensorboard=board)
    recorder.flush()
    assert board.got == [("lm loss", 10.0, 1), ("lm loss vs samples", 10.0, 8), "flush"]
    assert json.loads((tmp_path / METRICS_FILE).read_text())["iteration"] == 1


def test_a_training_outlives_tensorboard(tmp_path, capsys):
    """Whose files are on a disk that is full, or on one that is gone."""

    class Board:
        calls = 0

        def add_scalar(self, *args):
            Board.calls += 1
            if Board.calls == 2:
                raise OSError(28, "No space left on device")

    recorder = train(tmp_path, 1, 3, tensorboard=Board())
    recorder.flush()
    assert Board.calls == 2
    assert [line["lm loss"] for line in lines(tmp_path) if line["kind"] == "train"] == [10, 5, 10 / 3]
    assert (
        capsys.readouterr().out.count("TensorBoard gets nothing from here on ([Errno 28] No space left") == 1
    )


def test_a_record_without_a_checkpoint_to_go_on_from_is_put_aside(tmp_path, capsys):
    """As a whole, and each in its place; nothing of it is lost."""
    train(tmp_path, 1, 4)
    first = (tmp_path / METRICS_FILE).read_text()
    train(tmp_path, 1, 2)
    assert (tmp_path / "metrics-1.jsonl").read_text() == first
    assert "held 4 iterations and there is no checkpoint to go on from: see " in capsys.readouterr().out
    second = (tmp_path / METRICS_FILE).read_text()
    train(tmp_path, 1, 1)
    assert (tmp_path / "metrics-1.jsonl").read_text() == first
    assert (tmp_path / "metrics-2.jsonl").read_text() == second
    assert [line["iteration"] for line in lines(tmp_path)] == [1]

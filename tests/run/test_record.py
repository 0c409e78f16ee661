"""What is written to a run folder is read back, and what is not of that form is refused."""

import json

import pytest

from phd.run.record import (
    METRICS_FILE,
    RUN_FILE,
    last_records,
    line_text,
    read_lines,
    read_run_info,
    write_run_info,
)

ABOUT = {
    "name": "vanilla",
    "copies": 1,
    "seed": 1234,
    "seq_length": 4,
    "global_batch_size": 2,
    "train_iters": 20,
    "parameters": 1000,
    "flops_per_token": 6000.0,
    "device": "CPU",
}


def line(iteration, kind="train", **more):
    return {"kind": kind, "iteration": iteration, "tokens": 8 * iteration, "flops": 1e3 * iteration, **more}


def write(folder, *texts):
    (folder / METRICS_FILE).write_text("".join(texts))
    return folder / METRICS_FILE


def test_run_info_is_read_back_with_every_start(tmp_path):
    write_run_info(tmp_path, ABOUT | {"arguments": {"lr": 1.0}}, 0)
    write_run_info(tmp_path, ABOUT | {"arguments": {"lr": 2.0}}, 5)
    info = read_run_info(tmp_path / RUN_FILE)
    assert {name: vars(info)[name] for name in ABOUT if name != "device"} == {
        name: value for name, value in ABOUT.items() if name != "device"
    }
    assert info.arguments == {"lr": 2.0}
    assert info.starts == ((0, {"lr": 1.0}), (5, {"lr": 2.0}))


def test_iterations_that_are_not_counted_yet_follow_from_the_samples(tmp_path):
    write_run_info(tmp_path, ABOUT | {"train_iters": None, "arguments": {"train_samples": 41}}, 0)
    assert read_run_info(tmp_path / RUN_FILE).train_iters == 20


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="broken-json"),
        pytest.param("[]", id="no-object"),
        pytest.param(json.dumps({key: value for key, value in ABOUT.items() if key != "seed"}), id="no-seed"),
        pytest.param(json.dumps(ABOUT | {"seq_length": "long"}), id="no-number"),
        pytest.param(json.dumps(ABOUT | {"arguments": ["--lr", 1]}), id="no-arguments"),
    ],
)
def test_bad_run_file_is_named(tmp_path, text):
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"phd_run\.json is not what pretrain_phd\.py writes"):
        read_run_info(tmp_path / RUN_FILE)


def test_lines_are_read_back(tmp_path):
    rows = [{"prompt": "To be", "text": " or not"}]
    lines = [line(1, time=1.5, **{"lm loss": None}), line(1, "samples", samples=rows), line(1, "test")]
    assert list(read_lines(write(tmp_path, *map(line_text, lines)))) == lines


def test_no_file_has_no_lines(tmp_path):
    assert list(read_lines(tmp_path / METRICS_FILE)) == last_records(tmp_path / METRICS_FILE) == []


@pytest.mark.parametrize("torn", ['{"kind": "tr', line_text(line(2))[:-1]], ids=["half", "no-newline"])
def test_torn_last_line_is_left_out(tmp_path, torn):
    assert list(read_lines(write(tmp_path, line_text(line(1)), torn))) == [line(1)]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("nonsense\n", id="broken"),
        pytest.param("[]\n", id="no-object"),
        pytest.param("{}\n", id="empty"),
        pytest.param(line_text(line(2, **{"lm loss": "high"})), id="no-number"),
        pytest.param('{"kind": "train", "iteration": 2, "flops": 1.0}\n', id="no-tokens"),
        pytest.param(line_text(line(2) | {"tokens": None}), id="tokens-of-null"),
        pytest.param(line_text(line(2, "samples", samples=[{"prompt": "a"}])), id="no-text"),
    ],
)
def test_bad_line_is_named(tmp_path, bad):
    path = write(tmp_path, line_text(line(1)), bad, line_text(line(3)))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not what pretrain_phd\.py writes"):
        list(read_lines(path))


def test_newest_line_of_training_and_validation(tmp_path):
    lines = [line(1), line(1, "validation"), line(2), line(2, "samples"), line(3), line(3, "test")]
    path = write(tmp_path, *map(line_text, lines))
    assert last_records(path) == [line(3), line(1, "validation")]

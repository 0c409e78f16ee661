import json
from pathlib import Path

import pytest

from phd.compare.logs import find_runs, read_losses, read_run
from tests.compare.conftest import ABOUT, write_events


def test_run_is_read_by_tokens(make_run):
    (run,) = find_runs(make_run("run"))
    assert list(run.train_loss) == [8 * iteration for iteration in range(1, 21)]
    assert run.train_loss[8] == pytest.approx(4.9)
    assert run.validation_loss == pytest.approx({80: 4.25, 160: 3.25})
    assert run.tokens == 160
    # Iterations 19 and 20 are the last tenth.
    assert run.final_train_loss == pytest.approx((3.1 + 3.0) / 2)
    assert run.final_validation_loss == pytest.approx(3.25)
    assert run.training_flops == 160 * 6000.0
    assert run.tokens_per_second == pytest.approx(16)


def test_resumed_run_is_merged(tmp_path):
    write_events(tmp_path, {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.0, 5: 5.0}, {2: 8.5, 4: 6.5})
    # Killed after 5, resumed from a checkpoint at 2, and not yet where it was.
    write_events(tmp_path, {3: 3.0, 4: 2.0}, {})
    train, validation, _ = read_losses(tmp_path)
    assert train == {2: 9.0, 4: 8.0, 6: 3.0, 8: 2.0}
    assert validation == {4: 8.5}


def test_resume_that_only_validates_keeps_the_training_loss(tmp_path):
    write_events(tmp_path, {1: 9.0, 2: 8.0}, {2: 8.5})
    write_events(tmp_path, {}, {2: 8.25})
    assert read_losses(tmp_path)[:2] == ({2: 9.0, 4: 8.0}, {4: 8.25})


def test_test_loss_does_not_replace_the_validation_loss(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(log_dir=str(tmp_path)) as writer:
        for loss in (3.0, 7.0):  # Megatron's order at the end of training: validation, then test
            writer.add_scalar("lm loss validation vs samples", loss, 40)
    assert read_losses(tmp_path)[1] == {40: 3.0}


def test_torn_event_file_is_read_up_to_the_tear(tmp_path):
    write_events(tmp_path, {1: 9.0, 2: 8.0, 3: 7.0}, {})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert read_losses(tmp_path)[0] == {2: 9.0, 4: 8.0}


def test_runs_below_a_folder_in_order_of_paths(make_run, tmp_path):
    make_run("b/seed-2")
    make_run("a")
    assert [run.path.name for run in find_runs(tmp_path)] == ["a", "seed-2"]


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        find_runs(tmp_path / "nowhere")


def test_folder_without_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no phd_run.json"):
        find_runs(tmp_path)


def test_run_without_loss(tmp_path):
    (tmp_path / "phd_run.json").write_text(json.dumps(ABOUT))
    with pytest.raises(ValueError, match="no training loss is logged"):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="broken-json"),
        pytest.param("[]", id="no-object"),
        pytest.param(json.dumps({key: value for key, value in ABOUT.items() if key != "seed"}), id="no-seed"),
        pytest.param(json.dumps(ABOUT | {"seq_length": "long"}), id="no-number"),
    ],
)
def test_bad_run_file(tmp_path: Path, text: str):
    (tmp_path / "phd_run.json").write_text(text)
    with pytest.raises(ValueError, match="phd_run.json is not what pretrain_phd.py writes"):
        read_run(tmp_path / "phd_run.json")

"""Runs as pretrain_phd.py leaves them: phd_run.json, and event files by the writer that Megatron uses."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

ABOUT = {
    "name": "vanilla",
    "seed": 1234,
    "seq_length": 4,
    "global_batch_size": 2,
    "train_iters": 20,
    "parameters": 1000,
    "flops_per_token": 6000.0,
}


def write_events(
    folder: Path, train: Mapping[int, float], validation: Mapping[int, float], seconds: float = 0.5
) -> None:
    """The event file of one start of a run: losses by iteration, two samples and ``seconds`` each."""
    writer = SummaryWriter(log_dir=str(folder))
    for iteration, loss in train.items():
        writer.add_scalar("lm loss", loss, iteration, walltime=1e9 + iteration * seconds)
        writer.add_scalar("lm loss vs samples", loss, 2 * iteration, walltime=1e9 + iteration * seconds)
    for iteration, loss in validation.items():
        writer.add_scalar("lm loss validation", loss, iteration)
        writer.add_scalar("lm loss validation vs samples", loss, 2 * iteration)
    writer.close()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a finished run of 20 iterations whose losses are ``shift`` above a common curve."""

    def make(folder: str, shift: float = 0.0, **about: object) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "phd_run.json").write_text(json.dumps(ABOUT | about))
        train = {iteration: 5 - iteration / 10 + shift for iteration in range(1, 21)}
        write_events(path, train, {10: 4.25 + shift, 20: 3.25 + shift})
        return path

    return make

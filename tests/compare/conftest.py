"""Runs as pretrain_phd.py leaves them: phd_run.json and metrics.jsonl."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

ABOUT = {
    "name": "vanilla",
    "copies": 1,
    "seed": 1234,
    "seq_length": 4,
    "global_batch_size": 2,
    "train_iters": 20,
    "parameters": 1000,
    "flops_per_token": 6000.0,
}
ARGUMENTS = {"seed": 1234, "seq_length": 4, "global_batch_size": 2, "train_iters": 20, "lr": 0.001}
PHD = {"name": "PHD-CSWA-2-16-32", "copies": 2, "flops_per_token": 12000.0}
TOKENS_PER_ITERATION = 8


def record(kind: str, iteration: int, flops_per_token: Any = 6000.0, **more: Any) -> str:
    """One line of metrics.jsonl."""
    tokens = TOKENS_PER_ITERATION * iteration
    about = {"kind": kind, "iteration": iteration, "tokens": tokens, "flops": tokens * flops_per_token}
    return json.dumps({**about, "time": 1e9 + iteration, **more}) + "\n"


def write_metrics(
    folder: Path, train: Mapping[int, float], validation: Mapping[int, float], flops_per_token: float = 6000.0
) -> None:
    """Losses by iteration."""
    lines = []
    for iteration, loss in train.items():
        rate = {"phd/tokens-per-second": 10.0 + iteration} if iteration % 5 == 0 else {}
        lines.append(
            record("train", iteration, flops_per_token, **{"lm loss": loss, "grad-norm": 2.0, **rate})
        )
        if iteration in validation:
            losses = {"lm loss validation": validation[iteration]}
            lines.append(record("validation", iteration, flops_per_token, **losses))
    (folder / "metrics.jsonl").write_text("".join(lines))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run of 20 iterations whose losses are ``shift`` above a common curve.

    ``iterations``: how far it has come; ``arguments``: what differs in them, or None for a run without; the
    rest is what differs in phd_run.json.
    """

    def make(
        folder: str,
        shift: float = 0.0,
        iterations: int = 20,
        arguments: Mapping[str, object] | None = (),  # type: ignore[assignment]
        **about: object,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        content = ABOUT | about
        if arguments is not None:
            known = {key: content[key] for key in ARGUMENTS if key in content}
            content["arguments"] = ARGUMENTS | known | dict(arguments)
        (path / "phd_run.json").write_text(json.dumps(content))
        train = {iteration: 5 - iteration / 10 + shift for iteration in range(1, iterations + 1)}
        validation = {
            iteration: 5.25 - iteration / 10 + shift
            for iteration in range(5, iterations + 1)
            if iteration % 5 == 0
        }
        write_metrics(path, train, validation, float(str(content["flops_per_token"])))
        return path

    return make


@pytest.fixture
def make_full_run(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """Like ``make_run``, with everything recorded that a run may record: rates, sets, samples."""

    def make(folder: str, **about: Any) -> Path:
        path = make_run(folder, **about)
        original = about.get("copies", 1) > 1
        lines = []
        for text in (path / "metrics.jsonl").read_text().splitlines():
            line = json.loads(text)
            iteration = line["iteration"]
            if line["kind"] == "train":
                line |= {"learning-rate": 0.001 / iteration, "grad-norm": 1 + 1 / iteration}
                line |= {"phd/tflops-per-device": 4.0, "phd/mfu": 0.4}
            else:
                loss = line.pop("lm loss validation")
                for name, more in (("code", -0.5), ("wiki", 0.5)):
                    line[f"lm loss validation-{name}"] = loss + more
                    if original:
                        line[f"lm loss original validation-{name}"] = loss + more + 0.25
            lines.append(json.dumps(line) + "\n")
            if line["kind"] == "validation":
                texts = [
                    {"prompt": "Once <b>", "text": f"at {iteration}\nit was"},
                    {"prompt": "2 +", "text": " 2"},
                ]
                lines.append(record("samples", iteration, samples=texts))
        (path / "metrics.jsonl").write_text("".join(lines))
        return path

    return make

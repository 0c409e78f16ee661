"""Models that vLLM's kernels for CPUs take, what phd.hf continues prompts with, and vLLM's environment."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.models import VOCABULARY
from tests.world import ROOT
from tools.ports import held_ports

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SETTINGS = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "initializer_range": 0.15}
"""Heads of 32, the smallest that those kernels take."""


def random_prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1, VOCABULARY) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    assert PYTHON.is_file(), f"{PYTHON} is missing: run make vllm-test"
    return PYTHON


@pytest.fixture(scope="session")
def served(make_model, tmp_path_factory) -> Callable[[str], Path]:
    """served("PHD-2"): a folder, as `phd export` writes one."""
    folders: dict[str, Path] = {}

    def folder(variant: str) -> Path:
        if variant not in folders:
            folders[variant] = tmp_path_factory.mktemp("served") / variant
            make_model(variant, **SETTINGS).save_pretrained(folders[variant])
        return folders[variant]

    return folder


@pytest.fixture(scope="session")
def continued(make_model) -> Callable[[str, list[list[int]], int], list[list[int]]]:
    """continued(variant, prompts, count): the greedy tokens of phd.hf, one prompt at a time."""

    def tokens(variant: str, prompts: list[list[int]], count: int) -> list[list[int]]:
        model = make_model(variant, **SETTINGS)
        with torch.no_grad():
            out = (model.generate(torch.tensor([x]), max_new_tokens=count, do_sample=False) for x in prompts)
            return [x[0, len(prompt) :].tolist() for x, prompt in zip(out, prompts, strict=True)]

    return tokens


def run_worker(python: Path, job: list[dict], folder: Path) -> dict[str, dict]:
    """What ``tests.vllm.worker`` finds, by the cases' names."""
    (folder / "job.json").write_text(json.dumps(job))
    words = map(str, [python, "-m", "tests.vllm.worker", folder / "job.json", folder / "result.json"])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        ended = subprocess.run([*words], cwd=ROOT, env=environment, stdout=log, stderr=log)
    assert ended.returncode == 0, (folder / "log").read_text()[-3000:]
    return json.loads((folder / "result.json").read_text())


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Left to itself vLLM binds each rank to a NUMA node of its own."""
PATIENCE_S = 900


@contextlib.contextmanager
def started(folder: Path, log: Path, flags: str) -> Iterator[tuple[str, str]]:
    """The address of a server as `phd serve` starts it, and the line that it printed, once that works."""
    with held_ports(1) as (port,), open(log, "w") as output:
        words = ["serve", str(folder), "--engine", "vllm", "--port", str(port), f"--vllm-flags={flags}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "phd.commands.cli", *words], cwd=ROOT, stdout=output, stderr=output,
            env=os.environ | ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}", _working_line(log, process)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def _working_line(log: Path, process: subprocess.Popen) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        lines = [line for line in log.read_text().splitlines() if line.startswith("curl ")]
        if lines and subprocess.run(lines[0], shell=True, capture_output=True).returncode == 0:
            return lines[0]
        time.sleep(1)
    raise AssertionError(log.read_text()[-5000:])


@pytest.fixture(scope="session")
def with_tokenizer(served, tiny_folder, tmp_path_factory) -> Callable[[str], Path]:
    """with_tokenizer("PHD-2"): a folder of ``served`` with a tokenizer."""

    def folder(variant: str) -> Path:
        path = shutil.copytree(served(variant), tmp_path_factory.mktemp("http") / "model")
        for file in tiny_folder.glob("token*"):
            shutil.copy(file, path)
        return path

    return folder

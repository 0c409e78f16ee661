"""Models that vLLM's kernels for CPUs take, what phd.hf continues prompts with, and vLLM's environment."""

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.models import VOCABULARY
from tests.world import ROOT

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

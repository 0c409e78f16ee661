"""Short runs of pretrain_phd.py without a run folder: what it recorded, and no checkpoint."""

import os
import shlex
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.piece import ROOT, Result, call
from phd.run.files import read_json
from phd.run.record import METRICS_FILE, RUN_FILE, read_lines

# one rank needs no network, and a machine for measuring may have none
ENVIRONMENT = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo",
}  # fmt: skip
HAVE_ENGINE = find_spec("transformer_engine") is not None
FP8 = "--transformer-impl transformer_engine --fp8-format hybrid --fp8-recipe"
RECIPES = {
    "delayed": f"{FP8} delayed --fp8-amax-history-len 1024 --fp8-amax-compute-algo max",
    "tensorwise": f"{FP8} tensorwise",
    "blockwise": f"{FP8} blockwise",
}


def example_flags(size: str, variant: str) -> list[str]:
    """The flags that examples/pretrain.sh gives to pretrain_phd.py, but for the folder and the data."""
    environment = os.environ | {"PYTHON": "echo", "DATA_PREFIX": "-", "TOKENIZER_MODEL": "-"}
    command = ["bash", "examples/pretrain.sh", size, variant]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout)
    flags = words[words.index(str(ROOT / "pretrain_phd.py")) + 1 :]
    for flag in ("--run-dir", "--data-path"):
        at = flags.index(flag)
        del flags[at : at + 2]
    return flags


def train(flags: list[str]) -> tuple[Result, list[Result]]:
    """Run to the end; later flags win.

    Without Transformer Engine the vanilla baseline runs our flash attention (``flash_vanilla.py``).

    Returns:
        what phd_run.json says but for the arguments, and the lines of metrics.jsonl.

    Raises:
        see ``call``.
    """
    program = "pretrain_phd" if HAVE_ENGINE else "benchmarks.gpu.flash_vanilla"
    with tempfile.TemporaryDirectory() as folder:
        # without a folder to save to the record is kept beside TensorBoard's
        folders = ["--tensorboard-dir", folder, "--data-cache-path", str(Path(folder, "index-cache"))]
        options = ["--log-interval", "1", "--eval-iters", "0", *folders]
        call([sys.executable, "-m", program, *flags, *options], **ENVIRONMENT)
        about: Result = read_json(Path(folder, RUN_FILE))
        del about["arguments"]
        lines = [line for line in read_lines(Path(folder, METRICS_FILE)) if line["kind"] == "train"]
    return about, lines

"""The machine: GPU, driver, versions."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from benchmarks.gpu.piece import Result, main
from benchmarks.gpu.timing import device_of

PACKAGES = {
    # distribution -> a module that it alone brings (another project is called "apex" on the package index)
    "triton": "triton",
    "megatron-core": "megatron",
    "transformer-engine": "transformer_engine",
    "apex": "amp_C",
    "flash-attn": "flash_attn",
    "flash-attn-3": "flash_attn_interface",
    "transformers": "transformers",
    "numpy": "numpy",
}


def run(dry: bool) -> Result:
    """The machine: GPU, driver, versions."""
    device = device_of(dry)
    gpu = {}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return gpu | {
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        **{name: version_of(name, module) for name, module in PACKAGES.items()},
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
    }


def driver() -> str | None:
    """By nvidia-smi; None without it, or where it does not answer."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def version_of(distribution: str, module: str) -> str | None:
    """None where the module is not there; "unknown" where nothing tells its version."""
    if find_spec(module) is None:
        return None
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main(run))

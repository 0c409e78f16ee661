"""`phd doctor`: what is installed, which devices there are, what serves what, and what is missing."""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("pretrain-phd", "torch", "megatron-core", "transformers", "sentencepiece", "tokenizers", "wandb")
"""Without these pretraining, export or the data tools do not run."""


class Part(NamedTuple):
    """Something that is used where it is found."""

    name: str
    module: str
    serves: str
    without: str
    """What happens where it is missing."""
    remedy: str
    gpu: bool = False
    """It serves a GPU alone."""


PARTS = (
    Part(
        *("Transformer Engine", "transformer_engine", "fused layers, Adam and FP8 (--fp8-format)"),
        "Megatron's local layers; bf16 at most",
        "pip install --no-build-isolation 'pretrain-phd[gpu]', or the Dockerfile",
        gpu=True,
    ),
    Part(
        *("apex", "amp_C", "fused Adam and gradient clipping"),
        "those of Transformer Engine, or torch's",
        "NVIDIA's apex from its sources; the one of the package index is another project",
        gpu=True,
    ),
    Part(
        *("Triton", "triton", "hidden copies' attention in training, and decoding, in one kernel each"),
        "the same attention by torch's operators, slower",
        "it comes with torch for Linux",
        gpu=True,
    ),
    Part(
        *("FlashAttention 3", "flash_attn_interface", "attention on Hopper"),
        "torch's flash attention",
        "pip install flash-attn-3",
        gpu=True,
    ),
    Part(
        *("lm-evaluation-harness", "lm_eval", "phd eval"),
        "no phd eval",
        "pip install 'pretrain-phd[eval]'",
    ),
    Part(
        *("wonderwords", "wonderwords", "RULER's tasks of phd eval"),
        "no --tasks phd_ruler",
        "pip install 'pretrain-phd[ruler]'",
    ),
    Part(
        *("FastAPI", "fastapi", "phd serve"),
        "no phd serve",
        "pip install 'pretrain-phd[serve]'",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`phd doctor` has no flags."""


def run(args: argparse.Namespace) -> int:
    """Print what is there. Exit status 1 if something is missing without which nothing trains."""
    print(f"Python {platform.python_version()} on {platform.platform()}, {sys.executable}")
    missing = []
    for name in PACKAGES:
        try:
            print(f"  {name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
            print(f"  {name} is missing: pip install pretrain-phd")
    print("Devices")
    for line in devices():
        print(f"  {line}")
    gpu = _gpus() > 0
    print("Used where it is found")
    for part in PARTS:
        print(f"  {about(part, gpu)}")
    print("Commands")
    for program, use in (("torchrun", "training"), ("sbatch", "examples/slurm/"), ("docker", "the image")):
        found = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        print(f"  {program}: {found or f'not found, needed for {use} alone'}")
    if missing:
        print(f"phd doctor: {', '.join(missing)} missing: pip install pretrain-phd", file=sys.stderr)
    return 1 if missing else 0


def about(part: Part, gpu: bool) -> str:
    """One line.

    Args:
        gpu: whether there is one.
    """
    if find_spec(part.module) is not None:
        return f"{part.name}: found, serves {part.serves}" + (
            "" if gpu or not part.gpu else ", on a GPU alone"
        )
    if part.gpu and not gpu:
        return f"{part.name}: not found, and of no use without a GPU"
    return f"{part.name}: not found: {part.without}; {part.remedy}"


def devices() -> Iterator[str]:
    """GPUs with their memory and compute capability, and the CPU."""
    if find_spec("torch") is not None:
        import torch

        for number in range(_gpus()):
            properties = torch.cuda.get_device_properties(number)
            yield (
                f"GPU {number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute "
                f"capability {properties.major}.{properties.minor}"
            )
        if not _gpus():
            why = (
                "torch has no CUDA"
                if torch.version.cuda is None
                else f"torch is built for CUDA {torch.version.cuda}"
            )
            yield f"no GPU ({why}): training runs on the CPU over gloo, by itself"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield f"CPU: {cores} cores, {memory:.0f} GiB of memory{_instructions()}"


def _gpus() -> int:
    if find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _instructions() -> str:
    """What a CPU's matrix products are fast by, on Linux."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_bf16": "AMX bf16"}
    found = [name for flag, name in names.items() if flag in flags]
    return f", {', '.join(found)}" if found else ""

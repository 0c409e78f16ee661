"""A data set for the example scripts, and flags that shrink the 300k size to seconds."""

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.records import Format
from data_tools.tokenize import tokenize
from data_tools.train import train_tokenizer
from tests.examples.warm import WarmPython, warm_python
from tests.world import ROOT
from tools.slurm_here import Cluster, cluster

TINY = shlex.split("""
    --num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --seq-length 64 --max-position-embeddings 64
    --micro-batch-size 2 --global-batch-size 8 --lr-warmup-iters 1 --log-interval 1 --eval-iters 1
""")


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """What the scripts need in the environment; RUNS is for the test to set."""
    folder = tmp_path_factory.mktemp("text")
    text = folder / "source.txt"
    text.write_text("\n=\n".join(path.read_text() for path in sorted((ROOT / "phd").rglob("*.py"))))
    form = Format(document_separator="=")
    train_tokenizer([text], folder / "tokenizer", vocab_size=512, form=form)
    model = folder / "tokenizer.model"
    tokenize([text], folder / "data", tokenizer_model=model, append_eod=True, form=form)
    return os.environ | {
        "DATA_PREFIX": str(folder / "data"),
        "TOKENIZER_MODEL": str(model),
        "NPROC_PER_NODE": "1",
    }


@pytest.fixture
def warm(world) -> Iterator[WarmPython]:
    """A Python to take in place of the scripts', and of the walkthroughs'."""
    with warm_python(world) as python:
        yield python


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """Two nodes of one core."""
    with cluster(nodes=2, cpus=1) as running:
        yield running


def run_folder(runs: Path, variant: str, seed: int = 1) -> Path:
    return runs / f"{variant}-seed{seed}"


def accepted(command_lines: list[list[str]]) -> list[tuple[int, int, int]]:
    """In a rank: layers, width and length of the models of command lines that a start accepts."""
    from phd.training.arguments import parse_and_validate_args

    shapes = []
    for flags in command_lines:
        sys.argv = ["pretrain_phd.py", *flags]
        args = parse_and_validate_args().args
        shapes.append((args.num_layers, args.hidden_size, args.seq_length))
    return shapes

"""A run of before the pattern said its own numbers: 3 layers of 16, K = 2, LongGen's sink."""

import json
import shlex
import tarfile
from pathlib import Path

import pytest

from phd.compare.logs import find_runs

FLAGS = shlex.split("""
    --num-layers 3 --hidden-size 16 --ffn-hidden-size 24 --num-attention-heads 2 --group-query-attention
    --num-query-groups 1 --seq-length 32 --max-position-embeddings 32 --micro-batch-size 1
    --global-batch-size 1 --lr 1e-3 --lr-decay-style constant --mock-data --tokenizer-type NullTokenizer
    --vocab-size 63 --make-vocab-size-divisible-by 8 --swiglu --normalization RMSNorm --disable-bias-linear
    --position-embedding-type rope --attention-dropout 0 --hidden-dropout 0
    --untie-embeddings-and-output-weights --eval-iters 0 --seed 3
""")
NAME = "PHD-CSWA-2-3-4+longgen-sink.4.1.2"


@pytest.fixture
def run(tmp_path) -> Path:
    with tarfile.open(Path(__file__).with_name("run_version_1.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_it_goes_on(world, run):
    """By the variant's name."""
    schedule = ["--run-dir", str(run), "--train-iters", "3", "--override-opt-param-scheduler"]
    world.pretrain([*FLAGS, *schedule, "--variant", NAME])
    assert json.loads((run / "phd_run.json").read_text())["name"] == NAME
    assert (run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "3"


def exported(checkpoints: str) -> tuple[str, str]:
    from phd.loading import describe, open_checkpoint

    trained, tensors, _ = open_checkpoint(Path(checkpoints))
    config = describe(trained, tensors, None, True)[0]
    return type(config).__name__, config.phd_variant


def test_it_is_exported(world, run):
    (found,) = world.run(exported, str(run / "checkpoints"))
    assert found == ("PHDLlamaConfig", "PHD-CSWA-2-3-4+1sink.4.1.2-1full-1sink.4.1.2")


def test_its_record_says_its_numbers(run):
    """Its own name, which was silent on them, was that of other runs too."""
    assert json.loads((run / "phd_run.json").read_text())["name"] == "PHD-CSWA-2-3-4+longgen-sink"
    (log,) = find_runs(run)
    assert log.name == NAME

"""One world of gloo ranks, one data set of real text, one starting checkpoint for all tests of the model."""

import ast
import shlex
from pathlib import Path

import numpy as np
import pytest

# Sizes are multiples of 64: the distributed optimizer pads others, and saves the padding uninitialised.
MODEL = shlex.split("""
    --num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4
    --group-query-attention --num-query-groups 2 --swiglu --normalization RMSNorm --disable-bias-linear
    --position-embedding-type rope --untie-embeddings-and-output-weights --make-vocab-size-divisible-by 8
    --attention-dropout 0 --hidden-dropout 0 --seq-length 40 --max-position-embeddings 40
""")
TRAINING = shlex.split("""
    --micro-batch-size 2 --global-batch-size 8 --lr 2e-3 --lr-decay-style constant --clip-grad 1.0
    --train-iters 4 --eval-iters 1 --eval-interval 100 --log-interval 1 --seed 7
""")
VARIANTS = {
    "vanilla": [],
    "PHD-CSWA-3-5-12": shlex.split("--phd-copies 3 --phd-window 5 --phd-chunk 12"),
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for a data set of bytes of Python source, written with Megatron's own builder."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = tmp_path_factory.mktemp("data") / "source_text"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for name in ("ast.py", "argparse.py", "typing.py"):
        text = np.frombuffer((Path(ast.__file__).parent / name).read_bytes(), dtype=np.uint8).astype(np.int64)
        for document in np.array_split(text, 20):
            builder.add_document(document, [len(document)])
    builder.finalize(f"{prefix}.idx")
    return [
        *("--data-path", str(prefix), "--split", "90,5,5", "--data-cache-path", str(prefix.parent / "cache")),
        *("--tokenizer-type", "NullTokenizer", "--vocab-size", "255"),
    ]


@pytest.fixture(scope="session")
def base_flags(data: list[str]) -> list[str]:
    return [*MODEL, *TRAINING, *data]


def losses(folder: Path) -> dict[str, list[float]]:
    """Training loss and gradient norm of every step, in full precision, from the TensorBoard files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [scalar.value for scalar in events.Scalars(tag)] for tag in ("lm loss", "grad-norm")}

"""One world of gloo ranks, one data set of real text, one starting checkpoint for all tests of the model."""

import ast
import shlex
from pathlib import Path

import numpy as np
import pytest

from data_tools.indexed import write_index

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
VOCABULARY = 255
END_OF_DOCUMENT = VOCABULARY - 1  # of the NullTokenizer
MIXTURE_OF_EXPERTS = shlex.split("""
    --num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 64 --moe-aux-loss-coeff 0.01
""")
VARIANTS = {
    "vanilla": [],
    "PHD-CSWA-3-5-12": shlex.split("--phd-copies 3 --phd-window 5 --phd-chunk 12"),
}
PATTERN = "--attention-pattern 1sink.4.1.2-1full-1heads.1sink.1.1.6.1full-1block-sparse.4.3.1"
"""LongGen's two kinds of sparse layers around a full one and one whose heads differ, their blocks many in 40
positions."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for a data set of bytes of Python source."""
    prefix = tmp_path_factory.mktemp("data") / "source_text"
    texts = [
        np.frombuffer((Path(ast.__file__).parent / name).read_bytes(), dtype=np.uint8)
        for name in ("ast.py", "argparse.py", "typing.py")
    ]
    write_documents(prefix, [document for text in texts for document in np.array_split(text, 20)])
    return data_flags(prefix)


@pytest.fixture(scope="session")
def packed_data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for a data set whose samples hold several documents: lines of Python source, each with the
    end-of-document token of the NullTokenizer.
    """
    prefix = tmp_path_factory.mktemp("packed") / "source_lines"
    lines = Path(ast.__file__).read_bytes().splitlines()[:900]
    write_documents(prefix, [np.array([*line[:35], END_OF_DOCUMENT]) for line in lines])
    return data_flags(prefix)


def write_documents(prefix: Path, documents: list[np.ndarray]) -> None:
    """PREFIX.bin and .idx as Megatron's own builder writes them, which takes ten seconds to import."""
    tokens = np.dtype(np.uint16)
    prefix.with_suffix(".bin").write_bytes(np.concatenate(documents).astype(tokens).tobytes())
    write_index(prefix.with_suffix(".idx"), tokens, [np.array([len(document) for document in documents])])


def data_flags(prefix: Path) -> list[str]:
    return [
        *("--data-path", str(prefix), "--split", "90,5,5", "--data-cache-path", str(prefix.parent / "cache")),
        *("--tokenizer-type", "NullTokenizer", "--vocab-size", str(VOCABULARY)),
    ]


@pytest.fixture(scope="session")
def base_flags(data: list[str]) -> list[str]:
    return [*MODEL, *TRAINING, *data]


@pytest.fixture(scope="session")
def start_flags(world, base_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that load common initial weights: with pipeline stages Megatron seeds each stage differently."""
    folder = tmp_path_factory.mktemp("start")
    world.pretrain([*base_flags, "--train-iters", "1", "--save", str(folder), "--save-interval", "1"])
    return ["--pretrained-checkpoint", str(folder), "--override-phd-variant"]


def losses(folder: Path) -> dict[str, list[float]]:
    """Training loss and gradient norm of every step."""
    return {tag: scalars(folder, tag) for tag in ("lm loss", "grad-norm")}


def scalars(folder: Path, tag: str) -> list[float]:
    """What was logged at every step, in full precision, from the TensorBoard files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [scalar.value for scalar in events.Scalars(tag)]

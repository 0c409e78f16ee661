"""A tokenizer trained once on Python's own source, and documents that break naive tools."""

import argparse
import json
from pathlib import Path

import pytest

from data_tools.tokenize import tokenize
from data_tools.tokenizer import train_tokenizer

HARD = {
    "english": "It was the best of times, it was the worst of times.\n",
    "code": "def f(x):\n\treturn [x ** 2 for _ in range(10)]  # 1234567890\n\n\n",
    "cjk": "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。",
    "emoji": "👩‍👩‍👧‍👦 naïve café — ½ ™ 🏳️‍🌈",
    "control strings": "<s> not a token </s><unk> <0x41>",
    "null": "before\0after\0",
    "spaces": "  two  leading,   three inside, trailing   ",
    "line ends": "one\r\ntwo\rthree\u2028four\n\n",
    "very long line": "all work and no play " * 20_000,
}


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("tokenizer") / "source"
    text = prefix.with_suffix(".txt")
    text.write_text(Path(argparse.__file__).read_text() + HARD["english"] * 20)
    train_tokenizer([text], prefix, vocab_size=600)
    return prefix.with_suffix(".model")


@pytest.fixture(scope="session")
def hard_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every hard document, over and over, in several batches."""
    path = tmp_path_factory.mktemp("input") / "hard.jsonl"
    texts = list(HARD.values()) * 6
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def prefix(hard_jsonl: Path, tokenizer_model: Path, tmp_path: Path) -> Path:
    """A data set of the hard documents."""
    tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)
    return tmp_path / "out"

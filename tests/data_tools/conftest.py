"""A tokenizer trained once on Python's own source, and documents that break naive tools."""

import argparse
import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from data_tools import cards
from data_tools import tokenize as tokenize_module
from data_tools.encoders import load_encoder
from data_tools.shard import Settings, is_whole, shard_prefix, write_shard
from data_tools.tokenize import tokenize
from data_tools.train import train_tokenizer
from data_tools.units import Unit

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
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE like GPT-2's, as Hugging Face keeps it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(argparse.__file__).read_text()], trainer)
    path = tmp_path_factory.mktemp("hugging-face") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def token_bytes(tokenizer_json: Path) -> list[bytes]:
    """The tokens of ``tokenizer_json`` in the order of their merges, the 256 bytes in order before them."""
    vocabulary = json.loads(tokenizer_json.read_text())["model"]["vocab"]
    # GPT-2 writes byte b as this character: itself where that prints, else the next one from 256 on.
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    byte_of = {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = [bytes(byte_of[letter] for letter in name) for name in names if name != "<|endoftext|>"]
    return [*(bytes([byte]) for byte in range(256)), *(token for token in tokens if len(token) > 1)]


@pytest.fixture(scope="session")
def tiktoken_model(token_bytes: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiktoken") / "ranks.tiktoken"
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(token_bytes))
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def hard_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every hard document, over and over, in several batches."""
    path = tmp_path_factory.mktemp("input") / "hard.jsonl"
    texts = list(HARD.values()) * 6
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def stopped_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], AbstractContextManager[None]]:
    """Within it, Ctrl-C comes before a file of that name is put in place."""
    rename = cards.rename

    @contextmanager
    def stopped(name: str) -> Iterator[None]:
        def stop(path: Path, target: Path) -> None:
            if target.name == name:
                raise KeyboardInterrupt
            rename(path, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(cards, "rename", stop)
            yield

    return stopped


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are made here and not by workers, which take seconds to start."""

    def run(
        units: Sequence[Unit], folder: Path, options: str, settings: Settings, workers: int, title: str
    ) -> None:
        encoder = load_encoder(settings.tokenizer_model, fast=False)
        for unit in units:
            if not is_whole(shard_prefix(folder, unit), unit, options):
                write_shard(unit, shard_prefix(folder, unit), options, settings, encoder)

    monkeypatch.setattr(tokenize_module, "_run", run)


@pytest.fixture
def prefix(hard_jsonl: Path, tokenizer_model: Path, tmp_path: Path) -> Path:
    """A data set of the hard documents."""
    tokenize([hard_jsonl], tmp_path / "out", tokenizer_model=tokenizer_model)
    return tmp_path / "out"

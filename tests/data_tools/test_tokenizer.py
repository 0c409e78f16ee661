"""Training a tokenizer: reproducible, lossless, with a card; and what it refuses."""

import json

import pytest

from data_tools.tokenizer import train_tokenizer


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("".join(f"line {i} of a text with words and wordings\n" for i in range(500)))
    return path


def test_reproducible_for_a_seed(text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_tokenizer([text], tmp_path / name, vocab_size=300, seed=seed, max_sentences=50)
    a, b, c = ((tmp_path / f"{name}.model").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_card(text, tmp_path):
    train_tokenizer([text], tmp_path / "a", vocab_size=300)
    card = json.loads((tmp_path / "a.json").read_text())
    assert card["vocab_size"] == 300 == len((tmp_path / "a.vocab").read_text().splitlines())
    assert card["sentences"] == 500
    assert card["inputs"][0]["bytes"] == text.stat().st_size
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("vocab_size", "message"),
    [(200, "leaves no room"), (50_000, "SentencePiece refused --vocab-size 50000")],
    ids=["small", "large"],
)
def test_refused_vocab_size(vocab_size, message, text, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_tokenizer([text], tmp_path / "a", vocab_size=vocab_size)

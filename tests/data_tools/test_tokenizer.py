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
    card = json.loads((tmp_path / "a.model.json").read_text())
    assert card["vocab_size"] == 300 == len((tmp_path / "a.vocab").read_text().splitlines())
    assert card["sentences"] == 500
    assert card["inputs"][0]["bytes"] == text.stat().st_size
    assert not list(tmp_path.glob("*.tmp"))


def test_a_document_in_one_long_line_is_learnt_from(tmp_path):
    """SentencePiece drops what is over its limit; here nothing may be."""
    (tmp_path / "in.txt").write_text("abracadabra " * 5000)
    train_tokenizer([tmp_path / "in.txt"], tmp_path / "a", vocab_size=275)
    assert "abra" in (tmp_path / "a.vocab").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 200}, "leaves no room"),
        ({"vocab_size": 50_000}, "SentencePiece refused --vocab-size 50000"),
        ({"max_sentences": 0}, "--max-sentences must be at least 1"),
    ],
    ids=["small", "large", "sentences"],
)
def test_refused(changes, message, text, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_tokenizer([text], tmp_path / "a", **{"vocab_size": 300} | changes)
    assert not list(tmp_path.glob("a.*"))


def test_no_text(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="there is no text"):
        train_tokenizer([tmp_path / "in.jsonl"], tmp_path / "a", vocab_size=300)

"""Training a tokenizer: reproducible, lossless, with a card; and what it refuses."""

import gzip
import json
import os
import shlex
import subprocess

import pytest
import sentencepiece

from data_tools import train as module
from data_tools.files import write_bytes
from data_tools.records import Format
from data_tools.train import train_tokenizer
from tests.data_tools.conftest import HARD


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("".join(f"line {i} of a text with words and wordings\n" for i in range(500)))
    return path


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_reproducible_for_a_seed(model_type, text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_tokenizer(
            [text], tmp_path / name, vocab_size=287, seed=seed, max_sentences=50, model_type=model_type
        )
    a, b, c = ((tmp_path / f"{name}.model").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_lossless(model_type, text, tmp_path):
    train_tokenizer([text], tmp_path / "a", vocab_size=287, model_type=model_type)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
    for document in HARD.values():
        assert processor.decode(processor.encode(document)) == document


def test_card_and_control_tokens(text, tmp_path):
    train_tokenizer([text], tmp_path / "a", vocab_size=300, control_tokens=["<pad>", "<|user|>"])
    card = json.loads((tmp_path / "a.model.json").read_text())
    assert card["vocab_size"] == 300 == len((tmp_path / "a.vocab").read_text().splitlines())
    assert card["sentences"] == 500
    assert card["made_from"]["inputs"][0]["size"] == text.stat().st_size
    assert card["control_tokens"] == {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "<|user|>": 4}
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
    assert 4 not in processor.encode("a <|user|> b")
    assert not list(tmp_path.glob("*.tmp"))


def test_samples_documents(tmp_path):
    lines = "".join(json.dumps({"text": f"document {i} of words"}) + "\n" for i in range(1000))
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    train_tokenizer([tmp_path / "in.jsonl.gz"], tmp_path / "a", vocab_size=290, sample_rate=0.2)
    assert 150 < json.loads((tmp_path / "a.model.json").read_text())["documents"] < 250


def test_a_document_in_one_long_line_is_learnt_from(tmp_path):
    """SentencePiece drops what is over its limit; here nothing may be."""
    (tmp_path / "in.txt").write_text("abracadabra " * 5000)
    train_tokenizer([tmp_path / "in.txt"], tmp_path / "a", vocab_size=275)
    assert "abra" in (tmp_path / "a.vocab").read_text()


def test_bad_records(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "some words and more words"}\n' * 20 + "{}\n")
    with pytest.raises(ValueError, match=r"in\.jsonl, line 21: missing field"):
        train_tokenizer([tmp_path / "in.jsonl"], tmp_path / "a", vocab_size=280)
    train_tokenizer([tmp_path / "in.jsonl"], tmp_path / "a", vocab_size=280, stop_on_bad_record=False)
    assert json.loads((tmp_path / "a.model.json").read_text())["bad_records"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 200}, "leaves no room"),
        ({"vocab_size": 50_000}, "SentencePiece refused --vocab-size 50000"),
        ({"max_sentences": 0}, "--max-sentences must be at least 1"),
        ({"sample_rate": 0.0}, "--sample-rate must be above 0"),
        ({"model_type": "word"}, "--model-type must be one of bpe, unigram"),
        ({"control_tokens": ["<s>"]}, "--control-tokens: each one once"),
    ],
    ids=["small", "large", "sentences", "rate", "type", "control"],
)
def test_refused(changes, message, text, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_tokenizer([text], tmp_path / "a", **{"vocab_size": 300} | changes)
    assert not list(tmp_path.glob("a.*"))


def test_no_text(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="there is no text"):
        train_tokenizer([tmp_path / "in.jsonl"], tmp_path / "a", vocab_size=300)


def test_again_does_nothing_and_another_model_is_kept(text, tmp_path, monkeypatch, capsys):
    arguments = {"vocab_size": 287, "control_tokens": ["<pad>"]}
    train_tokenizer([text], tmp_path / "a", **arguments)
    model = (tmp_path / "a.model").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_sample", None)
        train_tokenizer([text], tmp_path / "a", **arguments)
    assert f"{tmp_path / 'a.model'}: already done" in capsys.readouterr().out
    for changes, message in (
        ({"vocab_size": 290}, "vocab_size was 287, is 290"),
        ({"seed": 3}, "seed was 0, is 3"),
        ({"max_sentences": 9}, "max_sentences was 1000000, is 9"),
        ({"form": Format("body")}, "text_field was text, is body"),
    ):
        with pytest.raises(ValueError, match=rf"a\.model was made from something else \({message}\)"):
            train_tokenizer([text], tmp_path / "a", **arguments | changes)
    text.write_text(text.read_text() + "more\n")
    with pytest.raises(ValueError, match=r"a\.model was made from something else \(inputs was"):
        train_tokenizer([text], tmp_path / "a", **arguments)
    assert (tmp_path / "a.model").read_bytes() == model


@pytest.mark.parametrize("card", [None, "{}", '{"made_from": {}, "sha256": "of another file"}'])
def test_a_model_of_unknown_origin_is_kept(card, text, tmp_path):
    (tmp_path / "a.model").write_bytes(b"precious")
    if card is not None:
        (tmp_path / "a.model.json").write_text(card)
    with pytest.raises(ValueError, match=r"a\.model is there already and no card"):
        train_tokenizer([text], tmp_path / "a", vocab_size=287)
    assert (tmp_path / "a.model").read_bytes() == b"precious"


def test_stopped_before_the_model_is_there(text, tmp_path, monkeypatch):
    """The last of its files: what came before does not keep the same command from going on."""

    def stop(path, content):
        if path.suffix == ".model":
            raise KeyboardInterrupt
        write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_bytes", stop)
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer([text], tmp_path / "a", vocab_size=287)
    train_tokenizer([text], tmp_path / "a", vocab_size=287)
    train_tokenizer([text], tmp_path / "a", vocab_size=287)


def test_empty_texts_are_passed_over_and_counted(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "some words and more words"}\n' * 20 + '{"text": ""}\n' * 5)
    with pytest.raises(ValueError, match=r"line 21: empty: .* --on-bad-record skip"):
        train_tokenizer([tmp_path / "in.jsonl"], tmp_path / "a", vocab_size=280, empty_is_bad=True)
    train_tokenizer([tmp_path / "in.jsonl"], tmp_path / "a", vocab_size=280)
    assert "20 documents, 5 empty texts passed over" in capsys.readouterr().out
    card = json.loads((tmp_path / "a.model.json").read_text())
    assert (card["bad_records"], card["empty_texts"]) == (0, 5)


def test_through_a_link_it_is_the_same(text, tmp_path, capsys):
    train_tokenizer([text], tmp_path / "a", vocab_size=287)
    (tmp_path / "linked.txt").symlink_to(text)
    train_tokenizer([tmp_path / "linked.txt"], tmp_path / "a", vocab_size=287)
    assert "already done" in capsys.readouterr().out


def test_a_touched_input_gets_its_time_back(text, tmp_path, capsys):
    """As the message says, if its content is what it was."""
    train_tokenizer([text], tmp_path / "a", vocab_size=287)
    os.utime(text, ns=(1, 1_234_567_890_000_000_042))
    with pytest.raises(ValueError, match=r"inputs was.*if its content is what it was: touch -d") as told:
        train_tokenizer([text], tmp_path / "a", vocab_size=287)
    command = str(told.value).split("what it was: ")[1].split("), choose")[0]
    subprocess.run(shlex.split(command), check=True)
    train_tokenizer([text], tmp_path / "a", vocab_size=287)
    assert "already done" in capsys.readouterr().out


def test_a_place_that_cannot_be_made_is_told_before_the_work(text, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "_sample", None)
    with pytest.raises(OSError, match="file"):
        train_tokenizer([text], tmp_path / "file" / "a", vocab_size=287)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 10**12}, "--vocab-size must be at most"),
        ({"sample_rate": float("nan")}, "--sample-rate must be above 0"),
        ({"control_tokens": [" "]}, "--control-tokens: one of them is empty"),
    ],
)
def test_numbers_and_tokens_that_are_none(changes, message, text, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_tokenizer([text], tmp_path / "a", **{"vocab_size": 300} | changes)

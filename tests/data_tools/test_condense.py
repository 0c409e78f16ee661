"""Whole sentences, those with a digit always, others by lot: against a loop over sentences."""

import json

import numpy as np
import pytest

from data_tools import rewrite as rewrite_module
from data_tools.cards import read_card
from data_tools.condense import condense
from data_tools.encoders import load_encoder
from data_tools.indexed import open_indexed
from data_tools.sentences import digit_ids, sentence_ends, token_texts
from data_tools.tokenize import tokenize
from data_tools.verify import verify
from phd.commands.cli import main

WORDS = ["it", "was", "the", "best", "of", "times", "worst", "and", "wisdom", "an", "age", "in", "years"]


@pytest.fixture(scope="module")
def corpus(tokenizer_model, tmp_path_factory):
    """200 documents with BOS and EOD, of sentences with and without digits; often the last has no end."""
    draw = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for _ in range(200):
        sentences = []
        for _ in range(draw.integers(1, 30)):
            words = draw.choice(WORDS, draw.integers(1, 9)).tolist()
            if draw.random() < 0.3:
                words.append(str(draw.integers(1000)))
            sentences.append(" ".join(words) + draw.choice([".", "?", "!", "...", "\n", ".\n\n"]))
        text = " ".join(sentences) + (" and then" if draw.random() < 0.5 else "")
        lines.append(json.dumps({"text": text}))
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        from tests.data_tools.conftest import in_process

        in_process.__wrapped__(patch)
        tokenize(
            [folder / "a.jsonl"],
            folder / "a",
            tokenizer_model=tokenizer_model,
            append_eod=True,
            prepend_bos=True,
        )
    return folder / "a"


def documents(prefix):
    indexed = open_indexed(prefix)
    return [indexed.read(number).tolist() for number in range(indexed.sequences)]


def sentences_of(document, ends):
    """Lists of ids; a run of ends belongs to the sentence before it."""
    found, current = [], []
    for place, token in enumerate(document):
        current.append(token)
        following = document[place + 1] if place + 1 < len(document) else None
        if token in ends and following not in ends:
            found.append(current)
            current = []
    return found + [current] if current else found


def selected(number, document, ends, digits, share, tokens, seed):
    """What is left of a document, a sentence after the other."""
    bos, *body, eod = document
    sentences = sentences_of(body, ends)
    # BOS and EOD are not drawn for, but take a number each
    draws = np.random.default_rng([seed, number]).random(len(sentences) + 2)[1:-1]
    room = tokens - 2
    fits = [len(sentence) <= room for sentence in sentences]
    kept = [
        fit and (bool(digits & set(sentence)) or number < share)
        for sentence, number, fit in zip(sentences, draws, fits, strict=True)
    ]
    if not any(kept):
        best = min((n for n in range(len(sentences)) if fits[n]), key=lambda n: draws[n], default=None)
        if best is None:
            return None
        kept[best] = True
    text, used = [], 0
    for sentence, keep in zip(sentences, kept, strict=True):
        used += len(sentence) if keep else 0
        if keep and used <= room:
            text += sentence
    return [bos, *text, eod]


@pytest.mark.parametrize("tokens", [None, 40, 9])
@pytest.mark.parametrize("block", [700, 1 << 24])
def test_against_one_sentence_at_a_time(block, tokens, corpus, tokenizer_model, tmp_path, monkeypatch):
    monkeypatch.setattr(rewrite_module, "BLOCK_TOKENS", block)
    card = condense(corpus, tmp_path / "out", tokenizer_model=tokenizer_model, tokens=tokens, seed=3)
    texts = token_texts(load_encoder(tokenizer_model, fast=False))
    ends, digits = set(sentence_ends("marks", texts)), set(digit_ids(texts))
    expected = [
        selected(number, document, ends, digits, 0.5, tokens or 10**6, 3)
        for number, document in enumerate(documents(corpus))
    ]
    assert documents(tmp_path / "out") == [document for document in expected if document]
    verify(tmp_path / "out")
    assert card["counts"].get("documents_left_out", 0) == expected.count(None)
    if tokens is None:  # the share drawn for, and everything with a digit
        counts = card["counts"]
        assert counts["with_digit_kept"] == counts["with_digit"]
        others = counts["sentences"] - counts["with_digit"]
        without_digit = counts["sentences_kept"] - counts["with_digit"]
        assert without_digit / others == pytest.approx(0.5, abs=3 * 0.5 / others**0.5)


def test_the_card_says_what_was_kept(corpus, tokenizer_model, tmp_path):
    words = ["data", "condense", str(corpus), "--output", str(tmp_path / "out"), "--sentence-ends", "newline"]
    words += ["--tokenizer-model", str(tokenizer_model), "--keep-share", "0.25", "--tokens", "300"]
    assert main([*words, "--seed", "3", "--on-no-sentence-end", "keep"]) == 0
    card, source = read_card(tmp_path / "out"), read_card(corpus)
    numbers = {"keep_share": 0.25, "tokens_at_most": 300, "seed": 3}
    assert numbers.items() <= card["condensed_from"].items()
    assert card["condensed_from"]["tokens"] == source["tokens"]
    assert card["sentence_ends"] == sentence_ends(
        "newline", token_texts(load_encoder(tokenizer_model, fast=False))
    )
    assert card["tokenizer_sha256"] == source["tokenizer_sha256"] and card["eod_id"] == source["eod_id"]


def test_all_kept_is_the_data_set(corpus, tokenizer_model, tmp_path):
    condense(corpus, tmp_path / "out", tokenizer_model=tokenizer_model, keep_share=1.0)
    for end in (".bin", ".idx"):
        assert (tmp_path / f"out{end}").read_bytes() == corpus.with_name(f"a{end}").read_bytes()


def test_a_stopped_run_goes_on(corpus, tokenizer_model, tmp_path, monkeypatch, capsys):
    """From the last block on the disk, with the same result; another run is told what is in its way."""
    monkeypatch.setattr(rewrite_module, "BLOCK_TOKENS", 700)
    condense(corpus, tmp_path / "whole", tokenizer_model=tokenizer_model)
    blocks = rewrite_module._blocks

    def three(source, first):
        for number, block in enumerate(blocks(source, first)):
            if number == 3:
                (tmp_path / "out.bin.tmp").open("ab").write(b"half a block")
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(rewrite_module, "_blocks", three)
    with pytest.raises(KeyboardInterrupt):
        condense(corpus, tmp_path / "out", tokenizer_model=tokenizer_model)
    assert not (tmp_path / "out.idx").exists()
    monkeypatch.setattr(rewrite_module, "_blocks", blocks)
    with pytest.raises(ValueError, match=r"out\.progress\.json was made from something else .* delete"):
        condense(corpus, tmp_path / "out", tokenizer_model=tokenizer_model, seed=1)
    condense(corpus, tmp_path / "out", tokenizer_model=tokenizer_model)
    assert "documents are done already" in capsys.readouterr().out
    for end in (".bin", ".idx"):
        assert (tmp_path / f"out{end}").read_bytes() == (tmp_path / f"whole{end}").read_bytes()
    assert read_card(tmp_path / "out") == read_card(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.bin", "out.idx", "out.json"]


@pytest.mark.parametrize("name", ["out.bin", "out.idx", "out.json"])
def test_stopped_while_files_get_their_places(name, corpus, tokenizer_model, tmp_path, stopped_before):
    with stopped_before(name):
        condense(corpus, tmp_path / "out", tokenizer_model=tokenizer_model)
    condense(corpus, tmp_path / "out", tokenizer_model=tokenizer_model)
    verify(tmp_path / "out")


def test_a_document_without_sentence_ends(tokenizer_model, tmp_path, in_process):
    texts = ["It was. The best.", "no end at all", "Of times!"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenize([tmp_path / "a.jsonl"], tmp_path / "a", tokenizer_model=tokenizer_model)
    with pytest.raises(ValueError, match=r"a: document 1 \(\d+ tokens\) has no sentence end: name what ends"):
        condense(tmp_path / "a", tmp_path / "out", tokenizer_model=tokenizer_model)
    condense(tmp_path / "a", tmp_path / "out", tokenizer_model=tokenizer_model, keep_without_end=True)
    assert documents(tmp_path / "out")[1] == documents(tmp_path / "a")[1]


def test_refusals(corpus, tokenizer_model, tokenizer_json, tmp_path):
    for changes, message in (
        ({"keep_share": 1.5}, "--keep-share must be from 0 to 1, got 1.5"),
        ({"tokens": 0}, "--tokens must be at least 1"),
        ({"tokens": 1}, "nothing of .*a would be left, and nothing is written"),
        ({"ends": "stops"}, "--sentence-ends stops: expected marks, newline, or ids"),
        ({"ends": "13,600"}, "--sentence-ends 13,600: the tokenizer has 600 ids"),
        ({"tokenizer_model": tokenizer_json}, "was made with another one"),
    ):
        with pytest.raises(ValueError, match=message):
            condense(corpus, tmp_path / "out", **{"tokenizer_model": tokenizer_model} | changes)
    assert not list(tmp_path.iterdir())

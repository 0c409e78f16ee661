"""Hugging Face's ids equal SentencePiece's, saved and loaded again."""

import random

import pytest
import sentencepiece
from transformers import AutoTokenizer

from phd.hf import tokenizer as module
from phd.hf.tokenizer import load_tokenizer
from tests.data_tools.conftest import HARD

TEXT = "The quick brown fox jumps over the lazy dog. def f(x):\n    return x + 1\n"


@pytest.fixture(scope="module", params=["bpe", "unigram", "bpe with a dummy prefix"])
def model(request, tmp_path_factory):
    kind, _, prefix = request.param.partition(" ")
    file = tmp_path_factory.mktemp("tokenizer") / "t"
    words = random.Random(0)
    alphabet = "".join(chr(c) for c in range(33, 127))
    lines = [TEXT, *(HARD[name] for name in ("english", "code"))]
    lines += ["".join(words.choices(alphabet + "    ", k=60)) for _ in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(file), model_type=kind, vocab_size=500,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=bool(prefix), hard_vocab_limit=False,
        control_symbols=["<|endoftext|>"], minloglevel=2,
    )  # fmt: skip
    return file.with_suffix(".model")


def test_same_ids_and_text(model, tmp_path):
    load_tokenizer(model).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    letters = random.Random(1)
    texts = [*HARD.values(), TEXT * 20]
    texts += [
        "".join(letters.choices("ab \nA1.\u00e9\u65e5<s>/|", k=letters.randint(1, 60))) for _ in range(500)
    ]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == reference.decode(ids)
    assert tokenizer.eos_token_id == reference.eos_id()
    assert tokenizer.padding_side == "left"


def test_control_tokens_decode_to_nothing(model):
    tokenizer = load_tokenizer(model)
    ids = [*tokenizer("fox", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert "</s>" not in tokenizer.decode(ids, skip_special_tokens=True)


def test_a_model_that_would_give_other_ids(model, monkeypatch):
    monkeypatch.setattr(module, "_normalizer", lambda proto: module.normalizers.Lowercase())
    with pytest.raises(ValueError, match="gives other ids than SentencePiece"):
        load_tokenizer(model)


def test_files_that_are_none(tmp_path):
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken.model: not a SentencePiece model"):
        load_tokenizer(broken)
    with pytest.raises(ValueError, match=r"a tokenizer is a SentencePiece .model"):
        load_tokenizer(tmp_path / "vocab.txt")

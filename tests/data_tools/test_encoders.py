"""Every encoder gives the ids of its reference tokenizer, on the fast path and in parts."""

import base64
import json
import random

import numpy as np
import pytest
import sentencepiece

from data_tools.encoders import load_encoder
from data_tools.encoders.hard_texts import TEXTS
from tests.data_tools.conftest import HARD

SPELT = ["a <s> b", "</s>", "<unk> <0x41>", "x<|endoftext|>y"]


@pytest.fixture(scope="module")
def models(tokenizer_model, tokenizer_json, tiktoken_model, token_bytes, tmp_path_factory):
    """One tokenizer of each kind, and SentencePiece's with a prefix as Llama has it, and unigram."""
    folder = tmp_path_factory.mktemp("models")
    text = [line for line in HARD["code"].splitlines() + HARD["english"].splitlines() if line] * 50
    for name, kind, prefix in (("prefix", "bpe", True), ("unigram", "unigram", False)):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_prefix=str(folder / name),
            model_type=kind,
            vocab_size=330,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=prefix,
            user_defined_symbols=["<tool>"],
            minloglevel=2,
        )
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(token_bytes)
    ]
    (folder / "megatron.json").write_text(json.dumps(entries))
    return {
        "sentencepiece": (tokenizer_model, None),
        "dummy-prefix": (folder / "prefix.model", None),
        "unigram": (folder / "unigram.model", None),
        "hugging-face": (tokenizer_json, None),
        "tiktoken-r50k": (tiktoken_model, "r50k_base"),
        "tiktoken-cl100k": (tiktoken_model, "cl100k_base"),
        "megatron-tiktoken": (folder / "megatron.json", "v2"),
    }


KINDS = {
    "sentencepiece": True,
    "dummy-prefix": True,
    "unigram": False,
    "hugging-face": True,
    "tiktoken-r50k": True,
    "tiktoken-cl100k": True,
    "megatron-tiktoken": False,
}


def load(models, kind, *, fast=True):
    path, pattern = models[kind]
    return load_encoder(path, fast=fast, pattern=pattern)


@pytest.mark.parametrize(("kind", "is_fast"), KINDS.items(), ids=KINDS)
def test_fast_path_is_the_reference(kind, is_fast, models):
    encoder = load(models, kind)
    assert encoder.is_fast == is_fast, encoder.why_slow
    assert (encoder.why_slow is None) == is_fast
    texts = [*TEXTS, *HARD.values(), *SPELT, "<tool> here"]
    for text, ids, expected in zip(texts, encoder.encode(texts), encoder.reference(texts), strict=True):
        assert ids.tolist() == expected, text


@pytest.mark.parametrize("kind", KINDS)
def test_random_texts(kind, models):
    """Random characters of all planes, random pieces of the vocabulary, and repeats of few characters."""
    encoder = load(models, kind)
    generator = random.Random(1)
    known = range(1000 if kind == "megatron-tiktoken" else 0, encoder.vocab_size)
    pieces = [encoder.decode([token]) for token in known]
    texts = []
    for _ in range(3000):
        length = generator.randint(1, 12)
        characters = [
            chr(generator.choice([generator.randint(1, 0xD7FF), generator.randint(32, 126)]))
            for _ in range(4)
        ]
        texts.append("".join(generator.choices([*characters, " ", "\n", "a", "e", "-"], k=length)))
        texts.append("".join(generator.choices(pieces, k=length)))
    texts = [text for text in texts if text]
    for text, ids, expected in zip(texts, encoder.encode(texts), encoder.reference(texts), strict=True):
        assert ids.tolist() == expected, text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_parts_have_the_ids_of_the_whole(kind, limit, models):
    """Cut wherever it is said to be safe, and encoded one by one."""
    encoder = load(models, kind)
    texts = [text for text in [*TEXTS[: 60 * limit], *HARD.values(), *SPELT] if len(text) < 5000]
    cut = 0
    for text, ids, expected in zip(
        texts, encoder.encode(texts, limit), encoder.reference(texts), strict=True
    ):
        assert ids.tolist() == expected, text
        cut += len(list(encoder.cut(text, limit))) > 1
    assert bool(cut) == (kind != "unigram") or limit == 100


def test_long_text_is_cut_into_parts_of_the_size_asked_for(models):
    encoder = load(models, "sentencepiece")
    text = HARD["very long line"]
    parts = list(encoder.cut(text, 10_000))
    assert "".join(parts) == text
    assert max(map(len, parts)) < 10_100


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_text_back(kind, models):
    encoder = load(models, kind)
    for text in HARD.values():
        (ids,) = encoder.encode([text])
        if kind != "dummy-prefix":
            assert encoder.decode(ids.tolist()) == text
        assert not set(ids.tolist()) & {
            encoder.specials.get(name) for name in ("<s>", "</s>", "<|endoftext|>")
        }


def test_a_wrong_fast_path_is_not_taken(models, monkeypatch):
    class Wrong:
        def __init__(self, real):
            self.real = real

        def encode_batch(self, texts, *, parallel):
            return self.real.encode_batch([text.replace("漢", "字") for text in texts], parallel=parallel)

    from data_tools.encoders import sentence_piece

    real = sentence_piece._gigatoken
    monkeypatch.setattr(sentence_piece, "_gigatoken", lambda path: Wrong(real(path)))
    encoder = load(models, "sentencepiece")
    assert not encoder.is_fast
    assert "other ids than the reference" in encoder.why_slow


@pytest.mark.parametrize("pattern", ["v1", "v2"])
def test_megatrons_tiktoken(pattern, models, token_bytes):
    from megatron.core.tokenizers.text.libraries.tiktoken_tokenizer import TikTokenTokenizer

    path, _ = models["megatron-tiktoken"]
    theirs = TikTokenTokenizer(str(path), pattern=pattern, vocab_size=1000 + len(token_bytes))
    ours = load_encoder(path, pattern=pattern)
    assert ours.vocab_size == 1000 + len(token_bytes)
    assert ours.specials["</s>"] == theirs.eos_id
    for text in TEXTS[:300]:
        assert ours.encode([text])[0].tolist() == theirs.text_to_ids(text)


def test_specials(models):
    encoder = load(models, "hugging-face")
    end = encoder.specials["<|endoftext|>"]
    assert encoder.control_id(None, ("</s>", "<|endoftext|>"), "--eod-token", "--append-eod") == end
    with pytest.raises(ValueError, match="--eod-token <end>: the tokenizer has <|endoftext|>"):
        encoder.control_id("<end>", (), "--eod-token", "--append-eod")
    with pytest.raises(ValueError, match="--prepend-bos: name the token with --bos-token"):
        encoder.control_id(None, ("<s>",), "--bos-token", "--prepend-bos")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_known_by_what_it_holds(kind, models, tmp_path):
    path, pattern = models[kind]
    for name in ("tokenizer", "tokenizer.model"):
        (tmp_path / name).write_bytes(path.read_bytes())
        encoder = load_encoder(tmp_path / name, pattern=pattern)
        assert type(encoder) is type(load(models, kind))
        assert encoder.sha256 == load(models, kind).sha256


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_folder_of_hugging_face(name, models, tmp_path):
    path, _ = models["hugging-face" if name == "tokenizer.json" else "sentencepiece"]
    (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert load_encoder(tmp_path).sha256 == load_encoder(path).sha256


def test_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"neither tokenizer\.json nor tokenizer\.model: name the file"
    ):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "pattern", "message"),
    [
        ("a.model", b"nothing", None, "not a SentencePiece model"),
        ("a.json", b"{}", None, "not a tokenizer.json"),
        ("a.json", b"[3]", "v2", "not what TikTokenTokenizer reads"),
        ("a.json", b"[]", None, "--tiktoken-pattern: .* needs one of v1, v2"),
        ("a.tiktoken", b"YQ== 0\nnot base64\n", "r50k_base", "line 2: expected TOKEN_IN_BASE64 RANK"),
        ("a.tiktoken", b"YQ== 0\n", None, "needs one of r50k_base, cl100k_base, o200k_base, llama3"),
        ("a.model", b"nothing", "v2", "--tiktoken-pattern is for tiktoken's files"),
    ],
)
def test_refused(name, content, pattern, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path / name, pattern=pattern)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.model"):
        load_encoder(tmp_path / "none.model")


def test_types(models):
    assert all(
        np.issubdtype(ids.dtype, np.integer) for ids in load(models, "sentencepiece").encode(["a", "<s>"])
    )

"""tokenizer.json: its own ids for every text, whatever added tokens, normalizers and settings it has."""

import json
import random
import unicodedata

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from data_tools.encoders import load_encoder, patterns
from data_tools.encoders.tokenizer_json import why_not_fast

LONG = "alpha " * 2730 + "aa New York is big " + "beta gamma " * 300
NEW_CHARACTERS = "\u088f\u0c5c\ua7ce\U00010940"  # letters since Unicode 17
LETTERS = (
    "aAsldLD1 \n\r\t'/!._\u00b2\u00a0\u3000\u200b\x85\u2028\u6f22\u01c5\u02b0\u0301\u0903\u017f\u2167\u0663"
)


def saved(tokenizer, folder, **changes):
    """Its file, with parts of the JSON replaced."""
    path = folder / "tokenizer.json"
    document = json.loads(tokenizer.to_str())
    model = document["model"] | changes.pop("model", {})
    path.write_text(json.dumps(document | {"model": model} | changes))
    return path


def same_ids(path, texts, *, limit=1 << 22, fast=True):
    """The encoder, after its ids were found to be those of `tokenizers`."""
    encoder = load_encoder(path, fast=fast)
    reference = Tokenizer.from_file(str(path))
    reference.encode_special_tokens = True
    for text, ids in zip(texts, encoder.encode(texts, limit), strict=True):
        assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids, text[:60]
    return encoder


def byte_pairs(pre_tokenizer, normalizer=None):
    """A byte-level BPE of many pairs of bytes, so that most borders between words show in the ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = random.Random(5).sample([(first, second) for first in alphabet for second in alphabet], 6000)
    names = [*alphabet, *(first + second for first, second in merges)]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def split(*expressions, behavior="isolated", use_regex=False):
    steps = [pre_tokenizers.Split(Regex(expression), behavior) for expression in expressions]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)]
    )


def random_texts(letters, count, length=14):
    generator = random.Random(2)
    for _ in range(count):
        few = generator.sample(letters, min(len(letters), generator.randint(2, 6)))
        yield "".join(generator.choices(few, k=generator.randint(2, length)))


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        ("New York", {}),
        ("York", {"rstrip": True}),
        ("is", {"lstrip": True}),
        ("is", {"single_word": True}),
        (" is", {"single_word": True}),
        ("w Yor", {"special": True}),
    ],
    ids=["spans", "rstrip", "lstrip", "single-word", "single-word-with-space", "special"],
)
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "reference"])
def test_added_tokens_are_found_in_the_whole_text(content, settings, fast, tokenizer_json, tmp_path):
    """Wherever it would be cut: the text moves by one character at a time."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.add_tokens([AddedToken(content, normalized=False, **settings)])
    path = saved(tokenizer, tmp_path)
    same_ids(path, ["a", LONG, "b"], fast=fast)
    same_ids(path, ["c" * extra + " aa New York is big beta" for extra in range(24)], limit=8, fast=fast)


def test_plain_added_tokens_leave_the_text_in_parts(tokenizer_json):
    encoder = same_ids(tokenizer_json, [LONG, LONG + "<|endoftext|>" + LONG], limit=1000)
    assert len(list(encoder.cut(LONG, 1000))) > 10


def test_nfc_is_that_of_tokenizers(tmp_path):
    path = saved(byte_pairs(split(patterns.QWEN2), normalizers.NFC()), tmp_path)
    marks = [
        chr(c) for c in range(0x3000) if unicodedata.combining(chr(c)) or unicodedata.decomposition(chr(c))
    ]
    texts = [
        "before",
        "\u039f\u1715\u0301",
        "e\u0301 \u0958 \uac00\u11a8",
        *random_texts([*marks, *"aeO"], 3000, 6),
    ]
    assert same_ids(path, texts).is_fast


def test_added_tokens_are_found_in_normalized_text(tmp_path):
    tokenizer = byte_pairs(split(patterns.QWEN2), normalizers.NFC())
    tokenizer.add_tokens([AddedToken("caf\u00e9", normalized=True), AddedToken("re\u0301", normalized=True)])
    path = saved(tokenizer, tmp_path)
    assert same_ids(path, ["a cafe\u0301 b", "a caf\u00e9 b", "x r\u00e9 y", "x re\u0301 y"]).is_fast


@pytest.mark.parametrize(
    "normalizer", [normalizers.Lowercase(), normalizers.NFKC(), normalizers.StripAccents()]
)
def test_other_normalizers_are_left_to_tokenizers(normalizer, tmp_path):
    encoder = same_ids(
        saved(byte_pairs(split(patterns.QWEN2), normalizer), tmp_path), ["New YORK \ufb01 e\u0301"]
    )
    assert not encoder.is_fast
    assert "its normalizer is not NFC" in encoder.why_slow


SPLITS = {expressions: split(*expressions) for expressions in sorted(patterns.FAST)} | {
    ("ByteLevel",): pre_tokenizers.ByteLevel(add_prefix_space=False),
    ("ByteLevel", "prefix"): pre_tokenizers.ByteLevel(add_prefix_space=True),
}


@pytest.mark.parametrize("pre_tokenizer", SPLITS.values(), ids=range(len(SPLITS)))
def test_splits_that_are_taken_for_certain(pre_tokenizer, tmp_path):
    """Random texts of all kinds of characters, and a sample of all characters that there are."""
    points = [*range(0x400), *range(0x400, 0x3000, 7), *range(0x3000, 0x34000, 211)]
    characters = [chr(point) for point in points if unicodedata.category(chr(point)) != "Cs"]
    places = (f"a{c}b1{c}2 {c}A {c}{c}\n{c}!{c}\r'{c} " for c in (*characters, *NEW_CHARACTERS))
    path = saved(byte_pairs(pre_tokenizer), tmp_path)
    assert same_ids(path, [*places, *random_texts(LETTERS, 3000)]).is_fast


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        split(patterns.LLAMA3.replace(r"\s*[\r\n]+", r"\s*[\r\n]")),
        split(patterns.TIKTOKEN["cl100k_base"] + "+"),
        split(patterns.QWEN2, behavior="removed"),
        split(patterns.QWEN2, use_regex=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split(patterns.LLAMA3)]),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    ids=["cl100k", "cl100k-possessive", "removed", "twice", "digits", "no-split"],
)  # fmt: skip
def test_splits_that_gigatoken_does_not_do_are_left_to_tokenizers(pre_tokenizer, tmp_path):
    texts = ["'\r\x85", "11111A11A", "a 1234 b'\n  x", "don't  do"]
    encoder = same_ids(saved(byte_pairs(pre_tokenizer), tmp_path), texts)
    assert not encoder.is_fast


def byte_fallback(normalizer, pre_tokenizer):
    """Like Llama 2's, on a few letters."""
    names = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"ab\u2581",
        "ab",
        "\u2581a",
        "\u2581ab",
        "b\u2581",
    ]
    merges = [("\u2581", "a"), ("a", "b"), ("\u2581a", "b"), ("b", "\u2581")]
    tokenizer = Tokenizer(
        models.BPE(
            {name: index for index, name in enumerate(names)}, merges,
            unk_token="<unk>", fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


SPACES = normalizers.Replace(" ", "\u2581")
LLAMA2 = normalizers.Sequence([normalizers.Prepend("\u2581"), SPACES])


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "is_fast"),
    [
        (LLAMA2, None, True),
        (SPACES, pre_tokenizers.Split(" ", "merged_with_previous"), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), True),
        (normalizers.Sequence([normalizers.NFKC(), SPACES]), None, False),
        (normalizers.Replace(Regex(" {2,}"), " "), None, False),
        (None, pre_tokenizers.Split(" ", "merged_with_previous"), False),
    ],
    ids=["llama2", "gemma", "metaspace", "nfkc", "regex", "split"],
)
def test_byte_fallback(normalizer, pre_tokenizer, is_fast, tmp_path):
    path = saved(byte_fallback(normalizer, pre_tokenizer), tmp_path)
    texts = [*random_texts("ab  \u2581\u00e9\u6f22\n.\ufb01", 500), "<0x41>", "<unk> a", NEW_CHARACTERS]
    assert same_ids(path, texts).is_fast == is_fast


def test_what_a_file_must_not_have_for_the_fast_path(tokenizer_json):
    document = json.loads(Tokenizer.from_file(str(tokenizer_json)).to_str())
    assert why_not_fast(document) is None
    for change, message in (
        ({"type": "Unigram"}, "this is Unigram"),
        ({"continuing_subword_prefix": "##"}, "prefix or suffix"),
        ({"end_of_word_suffix": "</w>"}, "prefix or suffix"),
        ({"vocab": {"a": 0}}, "lacks some of the 256 bytes"),
        ({"byte_fallback": True}, "lacks some of the 256 bytes"),
        ({"byte_fallback": True, "ignore_merges": True}, "past its merges"),
    ):
        assert message in why_not_fast(document | {"model": document["model"] | change})


def test_settings_of_training_are_switched_off(tokenizer_json, tmp_path):
    text = "the arguments of the parser " * 20
    (expected,) = load_encoder(tokenizer_json, fast=False).encode([text])
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=1000)
    path = saved(tokenizer, tmp_path, model={"dropout": 0.5})
    encoder = load_encoder(path)
    assert encoder.is_fast
    assert encoder.switched_off == ["dropout 0.5", "truncation", "padding"]
    for one in (encoder, load_encoder(path, fast=False)):
        assert all(ids.tolist() == expected.tolist() for ids in one.encode([text] * 3))


CHARACTERS = models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])


def test_characters_that_vanish_are_counted(tmp_path):
    encoder = load_encoder(saved(Tokenizer(CHARACTERS), tmp_path, model={"dropout": 0.5}))
    for text, ids, lost in (("ab", [2], 0), ("a\u6f22b", [2], 1), ("\u6f22\u5b57", [], 2)):
        (found,) = encoder.encode([text])
        assert (found.tolist(), encoder.unknown(text, found)) == (ids, lost)


def test_bytes_that_vanish_are_counted(tmp_path):
    """A byte-level BPE that was trained without the whole alphabet."""
    tokenizer = Tokenizer(CHARACTERS)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder = load_encoder(saved(tokenizer, tmp_path))
    (ids,) = encoder.encode(["ab\u6f22"])
    assert (ids.tolist(), encoder.unknown("ab\u6f22", ids), encoder.is_fast) == ([2], 3, False)


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"a": 0, "?": 1}, unk_token="?"),
        models.Unigram([("?", 0.0), ("a", -1.0)], unk_id=0),
        models.BPE({"a": 0, "?": 1}, [], unk_token="?"),
    ],
)
def test_ids_of_the_unknown_are_counted(model, tmp_path):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = load_encoder(saved(tokenizer, tmp_path))
    (ids,) = encoder.encode(["a \u6f22 a \u5b57"])
    assert encoder.unknown("", ids) == 2


def test_nothing_is_unknown_to_bytes(tokenizer_json, tmp_path):
    assert load_encoder(tokenizer_json).unknown_id is None
    assert load_encoder(saved(byte_fallback(None, None), tmp_path)).unknown_id is None


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"a": 0}, unk_token="?"),
        models.Unigram([("a", -1.0)]),
        models.BPE({"a": 0}, [], unk_token="?"),
    ],
)
def test_a_tokenizer_that_fails_on_the_unknown_is_refused_and_can_be_mended(model, tmp_path):
    path = saved(Tokenizer(model), tmp_path)
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: it fails on characters that it does not know .*unk_token"
    ):
        load_encoder(path)
    mended = {"unk_id": 0} if isinstance(model, models.Unigram) else {"unk_token": "a"}
    assert load_encoder(saved(Tokenizer(model), tmp_path, model=mended)).unknown_id == 0

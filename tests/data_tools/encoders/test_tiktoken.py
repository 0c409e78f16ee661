"""Ranks: what their control tokens are is told by the ranks and the pattern, never by the file's name."""

import base64

import pytest
import tiktoken

from data_tools.encoders import load_encoder, patterns
from data_tools.encoders.tiktoken import _specials
from tests.data_tools.encoders.test_hugging_face import LETTERS, NEW_CHARACTERS, random_texts


def write_ranks(path, tokens, ranks=None):
    lines = zip(tokens, ranks or range(len(tokens)), strict=True)
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in lines))
    return path


@pytest.mark.parametrize("pattern", patterns.TIKTOKEN)
@pytest.mark.parametrize("name", ["r50k_base.tiktoken", "mine.tiktoken", "tokenizer.model", "ranks"])
def test_the_name_of_the_file_does_not_matter(pattern, name, tiktoken_model, tmp_path):
    path = tmp_path / name
    path.write_bytes(tiktoken_model.read_bytes())
    encoder, usual = load_encoder(path, pattern=pattern), load_encoder(tiktoken_model, pattern=pattern)
    assert (encoder.specials, encoder.vocab_size) == (usual.specials, usual.vocab_size)
    assert encoder.is_fast, encoder.why_slow
    assert (
        encoder.encode(["it's 12345 PLACES"])[0].tolist() == usual.encode(["it's 12345 PLACES"])[0].tolist()
    )


@pytest.mark.parametrize(
    ("pattern", "first", "expected"),
    [
        ("r50k_base", 50256, 50256),
        ("r50k_base", 50281, 50256),
        ("cl100k_base", 100256, 100257),
        ("o200k_base", 199998, 199999),
        ("o200k_base", 1000, 1000),
    ],
)
def test_end_of_the_published_encodings(pattern, first, expected):
    assert _specials(pattern, first) == {"<|endoftext|>": expected}


def test_control_tokens_of_llama_3():
    specials = _specials("llama3", 128000)
    assert (len(specials), len(set(specials.values())), max(specials.values())) == (256, 256, 128255)
    assert (specials["<|begin_of_text|>"], specials["<|end_of_text|>"]) == (128000, 128001)
    assert (specials["<|eot_id|>"], specials["<|reserved_special_token_5|>"]) == (128009, 128010)


@pytest.mark.parametrize("pattern", patterns.TIKTOKEN)
def test_random_texts(pattern, tiktoken_model):
    encoder = load_encoder(tiktoken_model, pattern=pattern)
    texts = [*random_texts(LETTERS, 3000), NEW_CHARACTERS]
    ranks = {
        encoder._encoding.decode_single_token_bytes(rank): rank
        for rank in range(encoder.vocab_size - len(encoder.specials))
    }
    reference = tiktoken.Encoding(
        "reference", pat_str=patterns.TIKTOKEN[pattern], mergeable_ranks=ranks, special_tokens={}
    )
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        assert ids.tolist() == reference.encode_ordinary(text), text


def test_a_token_that_no_merges_lead_to_takes_the_slow_path(token_bytes, tmp_path, capfd):
    path = write_ranks(tmp_path / "a.tiktoken", [*token_bytes, b"qzxjqzxj"])
    encoder = load_encoder(path, pattern="r50k_base")
    assert not encoder.is_fast
    assert encoder.encode(["qzxjqzxj"])[0].tolist() == [len(token_bytes)]


def test_ranks_with_a_gap(token_bytes, tmp_path):
    path = write_ranks(
        tmp_path / "a.tiktoken", token_bytes, [*range(300), *range(310, len(token_bytes) + 10)]
    )
    encoder = load_encoder(path, pattern="r50k_base")
    assert encoder.specials == {"<|endoftext|>": len(token_bytes) + 10}
    assert encoder.decode(encoder.encode(["the parser"])[0].tolist()) == "the parser"


@pytest.mark.parametrize(
    ("tokens", "ranks", "message"),
    [
        ([b"a", b"b", b"a"], None, "line 3: this token or rank was there before"),
        ([b"a", b"b"], [0, 0], "line 2: this token or rank was there before"),
        ([bytes([byte]) for byte in range(255)], None, "has no token for the byte 0xff"),
    ],
)
def test_ranks_that_tiktoken_would_fail_on_are_refused(tokens, ranks, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_encoder(write_ranks(tmp_path / "a.tiktoken", tokens, ranks), pattern="r50k_base")


def test_llama_3s_file_says_which_pattern_it_needs(tiktoken_model, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tiktoken_model.read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer\.model holds tiktoken's ranks .*Llama 3 is llama3\)"):
        load_encoder(path)
    assert load_encoder(path, pattern="llama3").is_fast

"""`phd generate` from a Hugging Face folder: what is printed, and what is refused."""

import io
import sys
from argparse import ArgumentParser

import pytest
import torch

from phd.commands import generate
from tests.models import cache_bytes


@pytest.fixture
def folder(tiny_folder):
    return tiny_folder


def call(*arguments) -> int:
    parser = ArgumentParser()
    generate.add_arguments(parser)
    return generate.run(parser.parse_args([str(x) for x in arguments]))


def test_prompt_then_continuation(folder, capsys):
    assert call(folder, "--prompt", "the", "--max-new-tokens", 9, "--seed", 3) == 0
    first = capsys.readouterr()
    assert first.out.startswith("the")
    assert "9 tokens in" in first.err
    assert "tokens/s" in first.err
    assert call(folder, "--prompt", "the", "--max-new-tokens", 9, "--seed", 3) == 0
    assert capsys.readouterr().out == first.out
    assert call(folder, "--prompt", "the", "--max-new-tokens", 9, "--seed", 4) == 0
    assert capsys.readouterr().out != first.out


def test_bytes_are_the_formulas(folder, make_model, capsys):
    call(folder, "--prompt", "the", "--max-new-tokens", 20, "--temperature", 0)
    count = int(capsys.readouterr().err.split(" x ")[1].split()[0])
    call(folder, "--prompt", "the", "--max-new-tokens", 20, "--temperature", 0)
    expected = cache_bytes(make_model("PHD-CSWA-3-5-12+table").config, count)
    assert f"{expected:,} bytes of keys and values" in capsys.readouterr().err


def test_several_at_once(folder, capsys):
    """Greedy continuations of prompts of unequal lengths are those of each alone."""
    alone = []
    for prompt in ("a", "the time"):
        call(folder, "--prompt", prompt, "--max-new-tokens", 9, "--temperature", 0)
        alone.append(capsys.readouterr().out.strip("\n"))
    call(folder, "--prompt", "a", "--prompt", "the time", "--max-new-tokens", 9, "--temperature", 0)
    assert capsys.readouterr().out.strip("\n") == f"--- 1\n{alone[0]}\n--- 2\n{alone[1]}"
    call(folder, "--prompt", "a", "--batch", 3, "--max-new-tokens", 5)
    assert capsys.readouterr().out.count("--- ") == 3


def test_begins_as_the_tokenizer_does(folder):
    """With BOS where its post-processor puts one, as the evaluation; else an empty prompt follows an end."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert bos != eos
    the = tokenizer("the", add_special_tokens=False)["input_ids"]
    ids = generate._encode(tokenizer, ["the", ""], "cpu")["input_ids"]
    assert ids[0].tolist() == the
    assert ids[1, -1] == eos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, bos)]
    )
    ids = generate._encode(tokenizer, ["the", ""], "cpu")["input_ids"]
    assert ids[0].tolist() == [bos, *the]
    assert ids[1, -1] == bos


def test_prompt_from_a_file_and_from_stdin(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "prompt.txt").write_text("the time")
    call(folder, "--prompt-file", tmp_path / "prompt.txt", "--max-new-tokens", 3)
    first = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("the time"))
    call(folder, "--prompt-file", "-", "--max-new-tokens", 3)
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", 0], "--batch must be at least 1"),
        (["--max-new-tokens", 0], "--max-new-tokens must be at least 1"),
        (["--temperature", -1], "must not be negative"),
        (["--prompt", "time " * 400], "the model was trained on sequences of 256"),
        (["--tokenizer", "nothing.model"], "nothing.model"),
        (["--device", "nothing"], "--device nothing: torch has no such device here: pass --device cpu"),
        (["--device", "meta"], "--device meta: torch has no such device here"),
    ],
)
def test_refused(folder, flags, message):
    with pytest.raises((ValueError, OSError), match=message):
        call(folder, *flags)


def test_a_prompt_beyond_the_context_at_a_scale(folder, capsys):
    """The least whole scale that has room for the prompt and what follows it."""
    from transformers import AutoTokenizer

    prompt = ("--prompt", "time " * 150, "--max-new-tokens", 9, "--temperature", 0)
    length = len(AutoTokenizer.from_pretrained(folder)("time " * 150)["input_ids"])
    assert 256 < length + 9 <= 512
    assert call(folder, *prompt, "--rope-scale", "auto") == 0
    automatic = capsys.readouterr()
    assert "9 tokens in" in automatic.err
    continued = {}
    for scale in (2, 3):
        call(folder, *prompt, "--rope-scale", scale)
        continued[scale] = capsys.readouterr().out
    assert continued[2] == automatic.out != continued[3]
    with pytest.raises(ValueError, match="sequences of 256"):
        call(folder, *prompt)


@pytest.mark.parametrize("scale", ["0.5", "nan", "inf", "much"])
def test_no_scale(folder, scale, capsys):
    with pytest.raises(SystemExit):
        call(folder, "--rope-scale", scale)
    assert f"must be a number of at least 1, got '{scale}'" in capsys.readouterr().err


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        call(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there(folder, device):
    with pytest.raises(ValueError, match=f"--device {device}: torch has no such device here"):
        call(folder, "--device", device)


def test_a_prompt_in_another_encoding(folder, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompt.txt is not UTF-8 .*: convert it first"):
        call(folder, "--prompt-file", tmp_path / "prompt.txt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    with pytest.raises(ValueError, match="--prompt-file - is not UTF-8"):
        call(folder, "--prompt-file", "-")

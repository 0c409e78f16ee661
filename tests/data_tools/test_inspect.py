"""phd data inspect, and the command line around the tools."""

import pytest

from data_tools.inspect import inspect
from data_tools.tokenizer import train_tokenizer
from phd.cli import main
from tests.data_tools.conftest import HARD


def test_shows_counts_and_texts(prefix, tokenizer_model, capsys):
    inspect(prefix, tokenizer_model=tokenizer_model, samples=1)
    output = capsys.readouterr().out
    assert f"{6 * len(HARD)} documents" in output
    assert repr(HARD["english"]) in output


def test_ids_beyond_the_tokenizer(prefix, tmp_path):
    (tmp_path / "small.txt").write_text("a few words and no more\n" * 50)
    train_tokenizer([tmp_path / "small.txt"], tmp_path / "small", vocab_size=300)
    with pytest.raises(ValueError, match="has 300 pieces"):
        inspect(prefix, tokenizer_model=tmp_path / "small.model")


def test_command_line(hard_jsonl, tokenizer_model, tmp_path, capsys):
    """phd data tokenize, then inspect and verify; a bad input is one line and status 2."""
    arguments = ["--input", str(hard_jsonl), "--tokenizer-model", str(tokenizer_model)]
    assert (
        main(["data", "tokenize", *arguments, "--output-prefix", str(tmp_path / "a"), "--workers", "1"]) == 0
    )
    assert main(["data", "inspect", str(tmp_path / "a")]) == 0
    assert main(["data", "verify", str(tmp_path / "a"), "--tokenizer-model", str(tokenizer_model)]) == 0
    capsys.readouterr()
    assert main(["data", "inspect", str(tmp_path / "b")]) == 2
    assert "there is no such file" in capsys.readouterr().err

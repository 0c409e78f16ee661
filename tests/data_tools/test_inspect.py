"""phd data inspect, and the command line around the tools."""

import json

import pytest

from data_tools.inspect import inspect
from data_tools.train import train_tokenizer
from phd.commands.cli import main
from tests.data_tools.conftest import HARD


def test_shows_counts_lengths_and_texts(prefix, tokenizer_model, tmp_path, capsys):
    inspect(prefix, tokenizer_model=tokenizer_model, samples=1, histogram=tmp_path / "lengths.png")
    output = capsys.readouterr().out
    assert f"{6 * len(HARD)} documents" in output
    assert repr(HARD["english"]) in output
    counts = [int(line.split("tokens")[1].split()[0]) for line in output.splitlines() if "#" in line]
    assert sum(counts) == 6 * len(HARD)
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_ids_beyond_the_tokenizer(prefix, tmp_path):
    (tmp_path / "small.txt").write_text("a few words and no more\n" * 50)
    train_tokenizer([tmp_path / "small.txt"], tmp_path / "small", vocab_size=300)
    with pytest.raises(ValueError, match="holds id .* has 300"):
        inspect(prefix, tokenizer_model=tmp_path / "small.model", samples=9)


def test_command_line(hard_jsonl, tokenizer_model, tmp_path, monkeypatch, capsys):
    """All commands one after the other; a bad input is one line and status 2."""
    out, units, merged = tmp_path / "a", tmp_path / "b.units", tmp_path / "b"
    tokenizer = ["--tokenizer-model", str(tokenizer_model)]
    arguments = ["data", "tokenize", "--input", str(hard_jsonl), *tokenizer, "--append-eod"]
    assert main([*arguments, "--output-prefix", str(out), "--workers", "1"]) == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert main([*arguments, "--output-prefix", str(merged), "--workers", "1"]) == 0  # an array of one task
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    for rank in "01":
        ranks = ["--rank", rank, "--world-size", "2", "--workers", "1"]
        assert main([*arguments, "--output-prefix", str(tmp_path / "c"), *ranks]) == 0
    assert main(["data", "merge", str(tmp_path / "c.units"), "--output-prefix", str(tmp_path / "c")]) == 0
    assert main(["data", "merge", str(out), str(merged), "--output-prefix", str(tmp_path / "d")]) == 0
    assert main(["data", "inspect", str(tmp_path / "d"), *tokenizer]) == 0
    assert main(["data", "verify", str(out), str(tmp_path / "d"), str(tmp_path / "c")]) == 0
    blend = ["--output", str(tmp_path / "blend.txt"), "--temperature", "2", "--train-tokens", "1000"]
    assert main(["data", "blend", str(out), str(tmp_path / "d"), *blend]) == 0
    assert main(["data", "pack", str(out), "--length", "128", "1024"]) == 0
    assert not units.exists()
    assert json.loads((tmp_path / "d.json").read_text())["documents"] == 12 * len(HARD)
    capsys.readouterr()
    assert main(["data", "inspect", str(tmp_path / "none")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert main(["data", "merge", str(tmp_path), str(out), "--output-prefix", str(out)]) == 2
    assert "is merged alone" in capsys.readouterr().err
    assert main(["data", "blend", str(out), *blend, "--split", "a"]) == 2
    assert "expected numbers like" in capsys.readouterr().err

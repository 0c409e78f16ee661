"""Standard input and pipes: read once, known again by what came."""

import gzip
import io
import os
import sys
import threading

import pyarrow
import pytest
from pyarrow import parquet

from data_tools.__main__ import main
from data_tools.inputs import find_sources
from data_tools.pipes import is_pipe, spooled
from data_tools.records import Format, read_batches
from data_tools.tokenize import tokenize

LINES = b'{"text": "a"}\n{"text": "b"}\n'


def standard_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def texts(inputs, form=None):
    return [
        text
        for source in find_sources(inputs)
        for batch in read_batches(source, 0, None, form or Format(), 1 << 20)
        for text in batch.texts
    ]


def table():
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "content", [LINES, gzip.compress(LINES), table()], ids=["lines", "compressed", "parquet"]
)
def test_what_comes_is_seen_from_its_first_bytes(content, tmp_path, monkeypatch):
    standard_input(monkeypatch, content)
    (tmp_path / "in.jsonl").write_text('{"text": "c"}\n')
    with spooled([tmp_path / "in.jsonl", "-"], tmp_path / "out", is_text=False) as inputs:
        assert texts(inputs) == ["c", "a", "b"]
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_text_with_separators(tmp_path, monkeypatch):
    standard_input(monkeypatch, b"a\n---\nb")
    with spooled(["-"], tmp_path / "out", is_text=True) as inputs:
        assert texts(inputs, Format(document_separator="---")) == ["a\n", "b"]


def test_a_pipe_by_name(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[LINES])
    writer.start()
    with spooled([pipe], tmp_path / "out", is_text=False) as inputs:
        assert texts(inputs) == ["a", "b"]
    writer.join()
    assert is_pipe("/dev/fd/63") and is_pipe("-") and not is_pipe(tmp_path) and not is_pipe("s3://a/-")


def test_the_same_again_is_known_by_its_content(tokenizer_model, tmp_path, monkeypatch, in_process, capsys):
    def run(content):
        standard_input(monkeypatch, content)
        with spooled(["-"], tmp_path / "out", is_text=False) as inputs:
            return tokenize(inputs, tmp_path / "out", tokenizer_model=tokenizer_model)

    card = run(LINES)
    assert card["documents"] == 2
    assert run(LINES) == card
    assert "already done" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was made from something else"):
        run(LINES[:14])
    assert not list(tmp_path.glob(".out*"))


def command(monkeypatch, tmp_path, *more):
    arguments = ["phd data", "train-tokenizer", "--vocab-size", "280", "--output-prefix", str(tmp_path / "t")]
    monkeypatch.setattr("sys.argv", [*arguments, *more])
    return main()


def test_commands_take_lists_and_standard_input(tmp_path, monkeypatch, capsys):
    standard_input(monkeypatch, b'{"text": "some words and more words"}\n' * 30)
    (tmp_path / "in.jsonl").write_text('{"text": "others"}\n')
    (tmp_path / "list").write_text(f"{tmp_path / 'in.jsonl'}\n")
    assert command(monkeypatch, tmp_path, "--input", "-", "--input-list", str(tmp_path / "list")) == 0
    assert "31 lines of 31 documents" in capsys.readouterr().out


def test_refused(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, tmp_path) == 2
    assert "--input: name what to read, or with --input-list" in capsys.readouterr().err
    standard_input(monkeypatch, b"")
    with pytest.raises(ValueError, match="name it once"), spooled(["-", "-"], tmp_path / "t", is_text=False):
        pass
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(ValueError, match="is a terminal"), spooled(["-"], tmp_path / "t", is_text=False):
        pass
    words = [
        "tokenize",
        "--input",
        "-",
        "--output-prefix",
        str(tmp_path / "t"),
        "--tokenizer-model",
        "t.model",
    ]
    monkeypatch.setattr("sys.argv", ["phd data", *words, "--rank", "1", "--world-size", "2"])
    assert main() == 2
    assert "--input -: a pipe can be read by one rank alone" in capsys.readouterr().err

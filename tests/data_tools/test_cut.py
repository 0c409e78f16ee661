"""Pieces of one length, of single documents, against a loop over documents."""

import numpy as np
import pytest

from data_tools import rewrite as rewrite_module
from data_tools.cut import cut
from data_tools.indexed import open_indexed, write_index
from data_tools.verify import verify
from phd.commands.cli import main

LENGTHS = [3, 20, 5, 11, 0, 9, 30, 10, 1]


@pytest.fixture
def prefix(tmp_path):
    """Ids that count up, so that every token tells where it was."""
    np.arange(sum(LENGTHS), dtype=np.uint16).tofile(tmp_path / "a.bin")
    write_index(tmp_path / "a.idx", np.dtype(np.uint16), [np.array(LENGTHS, np.int32)])
    return tmp_path / "a"


@pytest.mark.parametrize("block", [1, 17, 1 << 24])
@pytest.mark.parametrize("length", [1, 5, 10, 30])
def test_pieces(length, block, prefix, tmp_path, monkeypatch):
    monkeypatch.setattr(rewrite_module, "BLOCK_TOKENS", block)
    card = cut(prefix, tmp_path / "out", length)
    starts = np.cumsum([0, *LENGTHS])
    expected = [
        list(range(start + piece * length, start + (piece + 1) * length))
        for start, tokens in zip(starts, LENGTHS, strict=False)
        for piece in range(tokens // length)
    ]
    pieces = open_indexed(tmp_path / "out")
    assert [pieces.read(number).tolist() for number in range(pieces.sequences)] == expected
    verify(tmp_path / "out", vocab_size=sum(LENGTHS))
    short = [tokens for tokens in LENGTHS if tokens < length]
    tails = [tokens % length for tokens in LENGTHS if tokens >= length and tokens % length]
    assert card["counts"] == {
        name: count
        for name, count in (
            ("short_documents", len(short)),
            ("tokens_in_short", sum(short)),
            ("tails", len(tails)),
            ("tokens_in_tails", sum(tails)),
        )
        if count
    }
    assert card["cut_from"]["length"] == length


def test_documents_of_several_sequences(tmp_path):
    """As other tools write them: a piece may reach over their borders."""
    np.arange(24, dtype=np.uint16).tofile(tmp_path / "a.bin")
    lengths, ends = np.array([4, 8, 5, 7], np.int32), np.array([2, 3, 4])
    write_index(tmp_path / "a.idx", np.dtype(np.uint16), [lengths], [ends])
    cut(tmp_path / "a", tmp_path / "out", 6)
    pieces = open_indexed(tmp_path / "out")
    assert [int(pieces.read(number)[0]) for number in range(pieces.sequences)] == [0, 6, 17]


def test_again_and_refusals(prefix, tmp_path, capsys):
    assert main(["data", "cut", str(prefix), "--output", str(tmp_path / "out"), "--length", "10"]) == 0
    before = (tmp_path / "out.bin").stat()
    cut(prefix, tmp_path / "out", 10)
    after = (tmp_path / "out.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "already done" in capsys.readouterr().out
    with pytest.raises(ValueError, match="out.json was made from something else"):
        cut(prefix, tmp_path / "out", 5)
    with pytest.raises(ValueError, match="--length 31: the longest document of .*a has 30 tokens"):
        cut(prefix, tmp_path / "new", 31)
    with pytest.raises(ValueError, match="--length must be at least 1"):
        cut(prefix, tmp_path / "new", 0)
    with pytest.raises(ValueError, match=r"--output: .*a\.bin would be written, and it is the input"):
        cut(prefix, prefix, 10)
    (tmp_path / "taken.idx").write_bytes(b"of another tool")
    with pytest.raises(ValueError, match=r"taken\.idx is there already and no card"):
        cut(prefix, tmp_path / "taken", 10)
    assert not list(tmp_path.glob("new*"))

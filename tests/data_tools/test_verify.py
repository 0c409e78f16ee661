"""Damage is found: a byte more or less, a flipped bit of the index, an id out of range."""

import numpy as np
import pytest

from data_tools import verify as module
from data_tools.verify import HEADER, verify
from tests.data_tools.conftest import HARD


def change(file, offset, value):
    content = bytearray(file.read_bytes())
    content[offset : offset + len(value)] = value
    file.write_bytes(content)


@pytest.mark.parametrize("chunk_tokens", [7001, 1 << 24])
def test_whole(chunk_tokens, prefix, monkeypatch, capsys):
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk_tokens)
    verify(prefix, vocab_size=600)
    assert f"whole, {6 * len(HARD)} documents" in capsys.readouterr().out


@pytest.mark.parametrize("end", [".bin", ".idx"])
@pytest.mark.parametrize("size", [-1, +1], ids=["short", "long"])
def test_wrong_size(end, size, prefix):
    file = prefix.with_suffix(end)
    content = file.read_bytes()
    file.write_bytes(content[:size] if size < 0 else content + b"x")
    with pytest.raises(ValueError, match=rf"out\{end} holds {len(content) + size} bytes"):
        verify(prefix, vocab_size=600)


@pytest.mark.parametrize("content", [b"", b"x" * 100], ids=["empty", "other"])
def test_not_an_index(content, prefix):
    prefix.with_suffix(".idx").write_bytes(content)
    with pytest.raises(ValueError, match="not an index of Megatron"):
        verify(prefix, vocab_size=600)


def test_missing_file(prefix):
    prefix.with_suffix(".idx").unlink()
    with pytest.raises(FileNotFoundError, match=r"out\.idx"):
        verify(prefix, vocab_size=600)


def test_offsets_that_do_not_follow(prefix):
    """The second sequence's offset, after the header and the lengths."""
    change(prefix.with_suffix(".idx"), HEADER.size + 4 * 6 * len(HARD) + 8, b"\x01")
    with pytest.raises(ValueError, match="do not follow one another"):
        verify(prefix, vocab_size=600)


def test_documents_out_of_order(prefix):
    change(prefix.with_suffix(".idx"), HEADER.size + 12 * 6 * len(HARD) + 8, b"\xff")
    with pytest.raises(ValueError, match="do not cover the sequences in order"):
        verify(prefix, vocab_size=600)


def test_id_out_of_range(prefix, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 50)
    lengths = np.fromfile(prefix.with_suffix(".idx"), np.int32, count=2, offset=HEADER.size)
    change(prefix.with_suffix(".bin"), 2 * int(lengths.sum()), np.uint16(600).tobytes())
    with pytest.raises(ValueError, match=r"out\.bin: sequence 2 holds id 600, not below 600"):
        verify(prefix, vocab_size=600)

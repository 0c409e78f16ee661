"""Damage is found: a byte more or less, a flipped bit anywhere, an id out of range."""

import json

import numpy as np
import pytest

from data_tools import verify as module
from data_tools.indexed import HEADER
from data_tools.records import Format
from data_tools.tokenize import tokenize
from data_tools.verify import verify
from tests.data_tools.conftest import HARD


def change(file, offset, value):
    content = bytearray(file.read_bytes())
    content[offset : offset + len(value)] = value
    file.write_bytes(content)


@pytest.fixture
def bare(prefix):
    """Without its card, as from Megatron's own tool."""
    prefix.with_suffix(".json").unlink()
    return prefix


@pytest.mark.parametrize("chunk_bytes", [7002, 1 << 24])
def test_whole(chunk_bytes, prefix, monkeypatch, capsys):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    verify(prefix)
    assert f"whole, {6 * len(HARD)} documents" in capsys.readouterr().out
    prefix.with_suffix(".json").unlink()
    verify(prefix, vocab_size=600)
    assert "no checksums to compare with" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give --tokenizer-model"):
        verify(prefix)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_flipped_bit_of_the_ids(place, prefix):
    file = prefix.with_suffix(".bin")
    offset = int(place * file.stat().st_size)
    change(file, offset, bytes([file.read_bytes()[offset] ^ 1]))
    with pytest.raises(ValueError, match=r"out\.bin: (bytes .* have changed|sequence .* holds id)"):
        verify(prefix)


@pytest.mark.parametrize("place", [0.1, 0.4, 0.6, 0.99])
def test_a_flipped_bit_of_the_index(place, prefix):
    file = prefix.with_suffix(".idx")
    offset = int(place * file.stat().st_size)
    change(file, offset, bytes([file.read_bytes()[offset] ^ 1]))
    with pytest.raises(ValueError, match=r"out\.(idx|bin)"):
        verify(prefix)


@pytest.mark.parametrize("end", [".bin", ".idx"])
@pytest.mark.parametrize("size", [-1, +1], ids=["short", "long"])
def test_wrong_size(end, size, prefix):
    file = prefix.with_suffix(end)
    content = file.read_bytes()
    file.write_bytes(content[:size] if size < 0 else content + b"x")
    with pytest.raises(ValueError, match=rf"out\{end} holds {len(content) + size} bytes"):
        verify(prefix)


@pytest.mark.parametrize("content", [b"", b"x" * 100], ids=["empty", "other"])
def test_not_an_index(content, prefix):
    prefix.with_suffix(".idx").write_bytes(content)
    with pytest.raises(ValueError, match="not an index of Megatron"):
        verify(prefix)


def test_missing_file(prefix):
    prefix.with_suffix(".idx").unlink()
    with pytest.raises(FileNotFoundError, match=r"out\.idx"):
        verify(prefix)


def test_offsets_that_do_not_follow(bare):
    """The second sequence's offset, after the header and the lengths."""
    change(bare.with_suffix(".idx"), HEADER.size + 4 * 6 * len(HARD) + 8, b"\x01")
    with pytest.raises(ValueError, match="do not follow one another"):
        verify(bare, vocab_size=600)


def test_documents_out_of_order(bare):
    change(bare.with_suffix(".idx"), HEADER.size + 12 * 6 * len(HARD) + 8, b"\xff")
    with pytest.raises(ValueError, match="do not cover the sequences in order"):
        verify(bare, vocab_size=600)


def test_id_out_of_range(bare, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    lengths = np.fromfile(bare.with_suffix(".idx"), np.int32, count=2, offset=HEADER.size)
    change(bare.with_suffix(".bin"), 2 * int(lengths.sum()), np.uint16(600).tobytes())
    with pytest.raises(ValueError, match=r"out\.bin: sequence 2 holds id 600, not below 600"):
        verify(bare, vocab_size=600)


def test_card_and_files_of_different_data_sets(prefix):
    file = prefix.with_suffix(".json")
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"documents": 3}))
    with pytest.raises(ValueError, match=r"out\.json speaks of 3 documents, the \.idx of 54"):
        verify(prefix)


def test_ids_that_were_lost(tokenizer_model, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a", "id": "xyz"}\n{"text": "b", "id": "uvw"}\n')
    form = Format(id_field="id")
    tokenize([tmp_path / "in.jsonl"], tmp_path / "out", tokenizer_model=tokenizer_model, form=form)
    verify(tmp_path / "out")
    (tmp_path / "out.ids.jsonl").write_text('"xyz-----uvw"\n')
    with pytest.raises(
        ValueError, match=r"out\.ids\.jsonl holds 1 ids for 2 documents|is missing or not the"
    ):
        verify(tmp_path / "out")
    (tmp_path / "out.ids.jsonl").unlink()
    with pytest.raises(ValueError, match=r"out\.ids\.jsonl is missing"):
        verify(tmp_path / "out")


def test_a_missing_one_is_told_before_the_work(prefix, monkeypatch, capsys):
    from data_tools.__main__ import main

    monkeypatch.setattr("sys.argv", ["phd data", "verify", str(prefix), f"{prefix}-none"])
    assert main() == 2
    told = capsys.readouterr()
    assert "out-none.bin: there is no such file" in told.err and "whole" not in told.out

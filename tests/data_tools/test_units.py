"""Work units cover every document once, wherever the cuts fall."""

import io
import json
from dataclasses import replace

import pyarrow
import pytest
from pyarrow import parquet

from data_tools.inputs import find_sources
from data_tools.records import Format, read_batches
from data_tools.units import LARGEST, SMALLEST, plan_units, unit_bytes

TEXTS = [f"document {i} " + "x" * (i * 7 % 40) for i in range(100)]


def write(folder, kind):
    path = folder / f"in.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.table({"text": TEXTS}), path, row_group_size=7)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" + "\n" * (len(text) % 3) for text in TEXTS))
    else:
        path.write_text("\n---\n".join(TEXTS))
    return path


def read(units, form, batch_bytes):
    """Texts, and the number of lines in each unit."""
    texts, lines = [], []
    for unit in units:
        for piece in unit.pieces:
            batches = list(read_batches(piece.source, piece.start, piece.end, form, batch_bytes))
            texts += [text for batch in batches for text in batch.texts]
            lines.append(sum(batch.lines for batch in batches))
            assert not any(batch.rejects for batch in batches)
    return texts, lines


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
@pytest.mark.parametrize("size", [1, 5, 17, 64, 333, 10**6])
@pytest.mark.parametrize("batch_bytes", [1, 10**6])
def test_every_document_once(kind, size, batch_bytes, tmp_path):
    path = write(tmp_path, kind)
    form = Format(document_separator="---" if kind == "txt" else None)
    units = plan_units(find_sources([path]), size, txt_is_split=True)
    assert len(units) > 1 or size > path.stat().st_size
    texts, lines = read(units, form, batch_bytes)
    assert [text.rstrip("\n") for text in texts] == TEXTS
    whole = len(TEXTS) if kind == "parquet" else len(path.read_bytes().splitlines())
    assert sum(lines) == whole


def test_small_files_share_a_unit_and_whole_files_are_not_cut(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text("x" * 40)
    units = plan_units(find_sources([tmp_path]), 100, txt_is_split=False)
    assert [len(unit.pieces) for unit in units] == [2] * 5
    before = [unit.name for unit in units]
    (tmp_path / "2.txt").write_text("x" * 41)
    after = [unit.name for unit in plan_units(find_sources([tmp_path]), 100, txt_is_split=False)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True, True, True]
    (tmp_path / "2.txt").write_text("x" * 40)
    units = plan_units(find_sources([tmp_path]), 10, txt_is_split=False)
    assert [(piece.start, piece.end) for unit in units for piece in unit.pieces] == [(0, None)] * 10


def test_default_size(tmp_path):
    (source,) = find_sources([write(tmp_path, "jsonl")])
    assert unit_bytes([source]) == SMALLEST
    assert unit_bytes([replace(source, size=LARGEST)] * 100) == LARGEST * 100 // 256
    assert unit_bytes([replace(source, size=LARGEST)] * 10_000) == LARGEST


def test_a_line_over_many_units_is_read_once(tmp_path, monkeypatch):
    """Looking for the next line must stop at the end of the range."""
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": "x" * 1_000_000}) + '\n{"text": "next"}\n')
    (source,) = find_sources([path])
    units = plan_units([source], 10_000, txt_is_split=False)
    assert len(units) > 90
    read = 0

    class Counting(io.FileIO):
        def readinto(self, buffer):
            nonlocal read
            count = super().readinto(buffer)
            read += count or 0
            return count

    monkeypatch.setattr(type(source), "open", lambda self: io.BufferedReader(Counting(self.path), 10_000))
    texts = []
    for unit in units:
        (piece,) = unit.pieces
        for batch in read_batches(source, piece.start, piece.end, Format(), 1 << 20):
            texts += batch.texts
    assert [len(text) for text in texts] == [1_000_000, 4]
    # Besides the line itself each range fills one buffer.
    assert read < 2_000_000 + len(units) * 20_000

"""Rows of parquet files as documents; what cannot be read names file and row."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from data_tools.inputs import find_sources
from data_tools.records import Format, read_batches


def batches(path, form=None, batch_bytes=1 << 20):
    (source,) = find_sources([path])
    return list(read_batches(source, 0, None, form or Format(), batch_bytes))


def texts(path, form=None):
    return [text for batch in batches(path, form) for text in batch.texts]


def rejects(path, form=None):
    return [reject for batch in batches(path, form) for reject in batch.rejects]


def test_parquet(tmp_path):
    path = tmp_path / "in.parquet"
    table = pyarrow.table({"body": ["a\n\0", None, "", "é"], "id": [1, 2, 3, 4], "other": [0.5] * 4})
    parquet.write_table(table, path)
    (batch,) = batches(path, Format("body", "id"))
    assert batch.texts == ["a\n\0", "é"]
    assert batch.ids == ["1", "4"]
    assert [(reject.line, reject.kind) for reject in batch.rejects] == [(2, "not a string"), (3, "empty")]
    assert batch.lines == 4


def test_parquet_of_bytes_and_of_text_that_is_none(tmp_path):
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table({"text": pyarrow.array([b"a", b"\xff", b"b"], pyarrow.binary())}), path)
    assert texts(path) == ["a", "b"]
    text = pyarrow.array([b"a", b"\xff", b"b"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": text}), path)
    assert texts(path) == ["a", "b"]
    assert [reject.kind for reject in rejects(path)] == ["invalid UTF-8"]


def test_parquet_that_is_none(tmp_path):
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    with pytest.raises(ValueError, match=r"no column 'text'; it has body"):
        texts(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"in\.parquet: not a parquet file"):
        texts(path)


def invalid(kind):
    """Three strings, the second of which is not UTF-8, as no honest writer makes them."""
    array = pyarrow.array([b"a", b"\xff", b"b"], pyarrow.binary()).view(pyarrow.string())
    if kind == "dictionary":
        return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1, 2], pyarrow.int32()), array)
    if kind == "large":
        offsets = pyarrow.array([0, 1, 2, 3], pyarrow.int64()).buffers()[1]
        return pyarrow.LargeStringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"a\xffb"))
    return array


@pytest.mark.parametrize("kind", ["plain", "dictionary", "large"])
@pytest.mark.parametrize("column", ["text", "id"])
def test_cells_that_are_not_utf8_are_bad_records(kind, column, tmp_path):
    """With their row; the others of the batch are read."""
    path = tmp_path / "in.parquet"
    good = pyarrow.array(["x", "y", "z"])
    columns = {"text": good, "id": good} | {column: invalid(kind)}
    parquet.write_table(pyarrow.table(columns), path)
    (batch,) = batches(path, Format(id_field="id"))
    assert len(batch.texts) == len(batch.ids) == 2
    assert [(reject.line, reject.kind) for reject in batch.rejects] == [(2, "invalid UTF-8")]


def test_cells_within_a_struct_that_are_not_utf8(tmp_path):
    path = tmp_path / "in.parquet"
    parquet.write_table(
        pyarrow.table({"meta": pyarrow.StructArray.from_arrays([invalid("plain")], ["text"])}), path
    )
    (batch,) = batches(path, Format("meta.text"))
    assert batch.texts == ["a", "b"]
    assert [(reject.line, reject.kind) for reject in batch.rejects] == [(2, "invalid UTF-8")]


def test_times_decimals_and_bytes_as_ids(tmp_path):
    import datetime
    import decimal

    moment = datetime.datetime(2026, 11, 30, 12, 30)
    for value, kind, expected in (
        (moment, pyarrow.timestamp("us"), "2026-11-30T12:30:00"),
        (moment.replace(tzinfo=datetime.UTC), pyarrow.timestamp("us", "UTC"), "2026-11-30T12:30:00+00:00"),
        (1, pyarrow.timestamp("ns"), "1970-01-01T00:00:00.000000001"),
        (moment.date(), pyarrow.date32(), "2026-11-30"),
        (decimal.Decimal("1.50"), pyarrow.decimal128(5, 2), "1.50"),
        (b"abc", pyarrow.binary(), "abc"),
        ({"a": moment}, pyarrow.struct([("a", pyarrow.timestamp("us"))]), {"a": "2026-11-30T12:30:00"}),
    ):
        path = tmp_path / "in.parquet"
        parquet.write_table(pyarrow.table({"text": ["a"], "id": pyarrow.array([value], kind)}), path)
        (batch,) = batches(path, Format(id_field="id"))
        assert [json.loads(identifier) for identifier in batch.ids] == [expected]


def test_a_time_that_python_does_not_know(tmp_path):
    """After the year 9999: as Arrow writes it."""
    path = tmp_path / "in.parquet"
    times = pyarrow.array([0, 10**15], pyarrow.timestamp("s"))
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "id": times}), path)
    (batch,) = batches(path, Format(id_field="id"))
    assert batch.texts == ["a", "b"] and len(batch.ids) == 2


def test_nested_columns(tmp_path):
    path = tmp_path / "in.parquet"
    table = pyarrow.table(
        {"meta": [{"text": "a", "key": {"id": 1}}, {"text": None, "key": None}], "other": [1, 2]}
    )
    parquet.write_table(table, path)
    (batch,) = batches(path, Format("meta.text", "meta.key.id"))
    assert (batch.texts, batch.ids) == (["a"], ["1"])
    assert [reject.line for reject in batch.rejects] == [2]
    parquet.write_table(table.append_column("meta.text", pyarrow.array(["literal", "wins"])), path)
    assert texts(path, Format("meta.text")) == ["literal", "wins"]
    with pytest.raises(ValueError, match=r"no column 'meta\.none'; it has meta"):
        texts(path, Format("meta.none"))


def test_a_damaged_page_names_the_file_and_the_row_group(tmp_path):
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table({"text": [f"{i} {i * 7919}" for i in range(20_000)]}), path)
    content = bytearray(path.read_bytes())
    content[1000:60_000] = bytes(59_000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"--input .*in\.parquet: damaged, .* row group 0 after"):
        texts(path)


def test_a_parquet_file_without_rows(tmp_path):
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "in.parquet")
    assert texts(tmp_path / "in.parquet") == []

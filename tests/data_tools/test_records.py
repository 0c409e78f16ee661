"""Reading records: where documents begin and end, what is none, and damaged files."""

import gzip
import io
import json
import re

import pyarrow
import pytest
from pyarrow import parquet

from data_tools.inputs import find_sources
from data_tools.records import REJECT_KINDS, Format, read_batches


def batches(path, form=None, batch_bytes=1 << 20):
    (source,) = find_sources([path])
    return list(read_batches(source, 0, None, form or Format(), batch_bytes))


def texts(path, form=None, batch_bytes=1 << 20):
    return [text for batch in batches(path, form, batch_bytes) for text in batch.texts]


def rejects(path, form=None):
    return [reject for batch in batches(path, form) for reject in batch.rejects]


def compress(path, content):
    """By the name's ending."""
    codec = {".gz": "gzip", ".zst": "zstd"}[path.suffix]
    with pyarrow.CompressedOutputStream(str(path), codec) as file:
        file.write(content)


def test_jsonl_keeps_every_character(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"body": "a\\n\\u0000"}\r\n\n{"body": "  ", "text": 3}')
    assert texts(path, Format("body")) == ["a\n\0", "  "]


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    assert texts(path) == ["a", "b"]


def test_ids_of_any_kind(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a", "id": "é\\n"}\n{"text": "b", "id": 3}\n{"text": "c"}\n')
    (batch,) = batches(path, Format(id_field="id"))
    assert [json.loads(identifier) for identifier in batch.ids] == ["é\n", 3]
    assert not any("\n" in identifier for identifier in batch.ids)
    assert batch.rejects[0].detail == "no field 'id' (--id-field names another)"


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        (None, ["a\n\r\n\nb\r\n---\n--- \nc"]),
        ("---", ["a\n\r\n\nb\r\n", "--- \nc"]),
        ("", ["a\n", "b\r\n---\n--- \nc"]),
    ],
    ids=["whole", "line", "blank-lines"],
)
def test_txt_documents(separator, expected, tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"a\n\r\n\nb\r\n---\n--- \nc")
    assert texts(path, Format(document_separator=separator)) == expected


@pytest.mark.parametrize(
    ("record", "kind", "detail"),
    [
        (b'{"text": "a"', "broken JSON", "at column"),
        (b'{"body": "a"}', "missing field", "no field 'text'"),
        (b'["text"]', "missing field", "not an object"),
        (b'{"text": 3}', "not a string", "is int"),
        (b'{"text": null}', "not a string", "is NoneType"),
        (b'{"text": ""}', "empty", "the document is empty"),
        (b'{"text": "\\ud800"}', "invalid UTF-8", "a lone surrogate"),
        (b'{"text": "\xff"}', "invalid UTF-8", "at byte 11"),
        (b'{"text": ' + b"1" * 5000 + b"}", "broken JSON", "Python does not read"),
        (b'{"text": ' + b"[" * 100_000 + b"}", "broken JSON", "Python does not read"),
    ],
    ids=["json", "field", "list", "int", "null", "empty", "surrogate", "utf8", "digits", "brackets"],
)
def test_bad_records_are_kept_apart(record, kind, detail, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + record + b'\n{"text": "good too"}\n')
    (batch,) = batches(path)
    assert batch.texts == ["good", "good too"]
    (reject,) = batch.rejects
    assert (reject.line, reject.kind) == (3, kind)
    assert kind in REJECT_KINDS
    assert detail in reject.detail
    assert len(reject.head) <= 200
    json.dumps(reject.head).encode()


def test_bad_bytes_in_txt_name_their_own_line(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"first\n---\nsecond\nthird \xff\n")
    (reject,) = rejects(path, Format(document_separator="---"))
    assert (reject.line, reject.kind) == (3, "invalid UTF-8")
    assert "line 2 of the document, byte 7" in reject.detail


def test_empty_txt(tmp_path):
    (tmp_path / "in.txt").touch()
    assert [reject.kind for reject in rejects(tmp_path / "in.txt")] == ["empty"]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed(ending, tmp_path):
    content = b"".join(b'{"text": "document %d"}\n' % i for i in range(5000))
    path = tmp_path / f"in.jsonl.{ending}"
    compress(path, content)
    assert len(texts(path, batch_bytes=1000)) == 5000
    # Two streams in one file, as `cat a.gz b.gz` makes them.
    path.write_bytes(path.read_bytes() * 2)
    assert len(texts(path)) == 10_000


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_cut_off_archive_is_an_error(ending, keep, tmp_path):
    """Never a short data set."""
    path = tmp_path / f"in.jsonl.{ending}"
    compress(
        path, "".join(json.dumps({"text": f"{i} {i * 7919 % 1000}"}) + "\n" for i in range(5000)).encode()
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=rf"in\.jsonl\.{ending}: damaged or cut off"):
        texts(path)


def test_damaged_gzip_is_an_error(tmp_path):
    path = tmp_path / "in.jsonl.gz"
    content = bytearray(gzip.compress(b'{"text": "a"}\n' * 1000))
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or cut off"):
        texts(path)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_json_is_json_lines(ending, tmp_path):
    path = tmp_path / f"in.json{ending}"

    def write(content):
        if ending:
            compress(path, content)
        else:
            path.write_bytes(content)

    write(b'\xef\xbb\xbf\n{"text": "a"}\n{"text": "b"}\n')
    assert texts(path) == ["a", "b"]
    for content in (
        b'[{"text": "a"}]',
        b'[\n{"text": "a"},\n{"text": "b"}\n]',
        b'{\n  "text": "a"\n}',
        b'"a"',
    ):
        write(content)
        with pytest.raises(ValueError, match=rf"in\.json{re.escape(ending)}: not JSON lines"):
            texts(path)


def test_a_later_range_of_a_json_array_is_an_error_too(tmp_path):
    path = tmp_path / "in.json"
    path.write_text("[\n" + '{"text": "a"},\n' * 9 + "]")
    (source,) = find_sources([path])
    with pytest.raises(ValueError, match=r"in\.json: not JSON lines.*begins with '\["):
        list(read_batches(source, 40, 90, Format(), 1 << 20))


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


def test_through_fsspec(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(100)))
    (source,) = find_sources([f"file://{path}"])
    assert isinstance(source.open(), io.IOBase)
    found = [batch.texts for batch in read_batches(source, 500, None, Format(), 1 << 20)]
    (local,) = find_sources([path])
    assert found == [batch.texts for batch in read_batches(local, 500, None, Format(), 1 << 20)]

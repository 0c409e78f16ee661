"""Reading records: where documents begin and end, what is none, and damaged files."""

import bz2
import gzip
import io
import json
import lzma
import re
import shutil
import subprocess

import pyarrow
import pytest

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
    """By the name's ending, if it is one."""
    packed = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstd}
    path.write_bytes(packed.get(path.suffix, bytes)(content))


def zstd(content):
    sink = io.BytesIO()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
        file.flush()
        sink.close = lambda: None
    return sink.getvalue()


def test_jsonl_keeps_every_character(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"body": "a\\n\\u0000"}\r\n\n{"body": "  ", "text": 3}')
    assert texts(path, Format("body")) == ["a\n\0", "  "]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".xz", ".bz2"])
@pytest.mark.parametrize(
    ("name", "content", "separator", "expected"),
    [
        ("in.jsonl", b'@{"text": "a"}\n{"text": "b"}\n', None, ["a", "b"]),
        ("in.ndjson", b'@{"text": "a"}\n@{"text": "b"}\n', None, ["a", "b"]),  # two files put together
        ("in.json", b'@{"text": "a"}\n@\n', None, ["a"]),
        ("in.txt", b"@a\nb", None, ["a\nb"]),
        ("in.txt", b"@a\n---\nb@", "---", ["a\n", "b\ufeff"]),
        ("in.txt", b"@---\na", "---", ["a"]),
    ],
    ids=["jsonl", "ndjson", "json", "txt", "separated", "separator-first"],
)
def test_a_byte_order_mark_is_no_text(ending, name, content, separator, expected, tmp_path):
    path = tmp_path / f"{name}{ending}"
    compress(path, content.replace(b"@", b"\xef\xbb\xbf"))
    (batch,) = batches(path, Format(document_separator=separator))
    assert (batch.texts, batch.rejects) == (expected, [])


def test_a_mark_alone_is_an_empty_text(tmp_path):
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbf")
    assert [reject.kind for reject in rejects(tmp_path / "in.txt")] == ["empty"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("ending", [".jsonl", ".txt", ".jsonl.gz", ".txt.xz"])
def test_utf_16_is_named(encoding, ending, tmp_path):
    path = tmp_path / f"in{ending}"
    compress(path, '{"text": "a, b and c"}\n{"text": "d"}\n'.encode(encoding))
    (source,) = find_sources([path])
    with pytest.raises(ValueError, match=rf"in{re.escape(ending)}: not UTF-8 but UTF-16 or UTF-32.* iconv"):
        list(read_batches(source, 0, None, Format(), 1 << 20))


def test_utf_16_is_seen_in_every_range_and_converted_it_is_read(tmp_path):
    path = tmp_path / "in.jsonl"
    content = '{"text": "a"}\n' * 40
    path.write_text(content, encoding="utf-16")
    (source,) = find_sources([path])
    with pytest.raises(ValueError, match="UTF-16"):
        list(read_batches(source, 400, 500, Format(), 1 << 20))
    path.write_text(path.read_text(encoding="utf-16"), encoding="utf-8")  # as iconv does
    assert len(texts(path)) == 40


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


@pytest.mark.parametrize("ending", ["gz", "zst", "xz", "bz2"])
def test_compressed(ending, tmp_path):
    content = b"".join(b'{"text": "document %d"}\n' % i for i in range(5000))
    path = tmp_path / f"in.jsonl.{ending}"
    compress(path, content)
    assert len(texts(path, batch_bytes=1000)) == 5000
    # Two streams in one file, as `cat a.gz b.gz` makes them.
    path.write_bytes(path.read_bytes() * 2)
    assert len(texts(path)) == 10_000


@pytest.mark.parametrize("ending", ["gz", "zst", "xz", "bz2"])
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


@pytest.mark.parametrize("ending", ["gz", "zst", "xz", "bz2"])
def test_a_damaged_archive_is_an_error(ending, tmp_path):
    """In its middle, and where a second one begins: the end of the first is not the end of the file."""
    path = tmp_path / f"in.jsonl.{ending}"
    compress(path, "".join(f'{{"text": "{i} {i * 7919 % 1000}"}}\n' for i in range(5000)).encode())
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0xFF
    for content in (bytes(damaged), good + b"x" + good[1:], good + b"garbage", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"in\.jsonl\.{ending}: damaged or cut off"):
            texts(path)


@pytest.mark.parametrize("ending", ["gz", "xz", "bz2"])
@pytest.mark.parametrize("zeros", [1, 512, 3_000_000])
def test_zeros_after_an_archive_are_padding(ending, zeros, tmp_path):
    """As tapes and block devices leave them; also between two."""
    path = tmp_path / f"in.jsonl.{ending}"
    compress(path, b'{"text": "a"}\n' * 10)
    path.write_bytes((path.read_bytes() + bytes(zeros)) * 2)
    assert texts(path) == ["a"] * 20


def zstd_of_window(content, window_log):
    """One frame of one raw block, which says that it needs a window of so many bits."""
    block = (1 | len(content) << 3).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + block + content


@pytest.mark.parametrize("window_log", [27, 28, 31])
def test_a_large_window_is_no_damage(window_log, tmp_path):
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(zstd_of_window(b'{"text": "a"}\n', window_log))
    if window_log == 27:
        assert texts(path) == ["a"]
        return
    with pytest.raises(
        ValueError, match=r"in\.jsonl\.zst: .* window over 128 MiB .*zstd -dc --long=31"
    ) as told:
        texts(path)
    assert "damaged" not in str(told.value)
    if shutil.which("zstd"):
        command = (
            str(told.value)
            .split("anew: ")[1]
            .replace("FILE", str(path))
            .replace("NEW", f"{tmp_path}/new.jsonl")
        )
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
        assert texts(tmp_path / "new.jsonl.zst") == ["a"]


def test_frames_to_skip_hold_no_text(tmp_path):
    """pzstd writes them."""
    path = tmp_path / "in.jsonl.zst"
    compress(path, b'{"text": "a"}\n')
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0size" + path.read_bytes())
    assert texts(path) == ["a"]


@pytest.mark.parametrize(
    ("name", "how", "right"),
    [
        ("in.jsonl", ".gz", "in.jsonl.gz"),
        ("in.txt", ".xz", "in.txt.xz"),
        ("in.jsonl.gz", ".zst", "in.jsonl.zst"),
        ("in.txt.bz2", ".gz", "in.txt.gz"),
        ("in.jsonl.gz", "", "in.jsonl"),
        ("in.json.zst", "", "in.json"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(name, how, right, tmp_path):
    """It is told by its first bytes, and renamed it is read."""
    compress(tmp_path / f"packed{how}", b'{"text": "a"}\n')
    path = (tmp_path / f"packed{how}").rename(tmp_path / name)
    ending = right.removeprefix("in") if how else "." + name.rpartition(".")[2]
    with pytest.raises(ValueError, match=rf"{re.escape(name)}: .*rename it.*{re.escape(ending)}"):
        texts(path)
    path = path.rename(tmp_path / right)
    assert len(texts(path)) == 1


@pytest.mark.parametrize(
    "content", [b"\x04\x22\x4d\x18lz4", bytes(400), b"\xff" * 9], ids=["lz4", "zeros", "ff"]
)
@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_what_is_neither_text_nor_known_is_damaged(content, ending, tmp_path):
    path = tmp_path / f"in.jsonl.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged or cut off \(it does not begin as \.{ending} does"):
        texts(path)


def test_a_file_of_zeros_is_one_bad_record(tmp_path):
    """As a lost machine leaves it; it is not UTF-16."""
    (tmp_path / "in.jsonl").write_bytes(bytes(400))
    assert [reject.kind for reject in rejects(tmp_path / "in.jsonl")] == ["broken JSON"]


def test_a_dictionary_is_no_damage(tmp_path):
    path = tmp_path / "in.jsonl.zst"
    frame = bytearray(zstd_of_window(b'{"text": "a"}\n', 20))
    frame[4:6] = b"\x01" + frame[5:6] + b"\x07"  # the number of a dictionary
    path.write_bytes(frame)
    with pytest.raises(ValueError, match="compressed with a dictionary, .* compress it anew without one"):
        texts(path)


def test_packed_twice(tmp_path):
    compress(tmp_path / "in.jsonl.gz", gzip.compress(b'{"text": "a"}\n'))
    with pytest.raises(ValueError, match="what is packed in it is gz again: unpack it once"):
        texts(tmp_path / "in.jsonl.gz")
    (tmp_path / "once.jsonl.gz").write_bytes(gzip.decompress((tmp_path / "in.jsonl.gz").read_bytes()))
    assert texts(tmp_path / "once.jsonl.gz") == ["a"]


def test_a_text_may_begin_like_an_archive(tmp_path):
    for start in ("BZh91AY&SY", "PAR1\x15", "P*M\x18"):
        (tmp_path / "in.txt").write_text(f"{start} is how it begins")
        assert texts(tmp_path / "in.txt") == [f"{start} is how it begins"]


def test_a_read_that_fails_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n')
    (source,) = find_sources([path])

    class Failing(io.BytesIO):
        def readlines(self, hint=-1):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("data_tools.records._open_lines", lambda source: Failing())
    with pytest.raises(OSError, match="Input/output error.*in.jsonl"):
        list(read_batches(source, 0, None, Format(), 1 << 20))


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".xz", ".bz2"])
def test_json_is_json_lines(ending, tmp_path):
    path = tmp_path / f"in.json{ending}"

    def write(content):
        compress(path, content)

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


def test_through_fsspec(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(100)))
    (source,) = find_sources([f"file://{path}"])
    assert isinstance(source.open(), io.IOBase)
    found = [batch.texts for batch in read_batches(source, 500, None, Format(), 1 << 20)]
    (local,) = find_sources([path])
    assert found == [batch.texts for batch in read_batches(local, 500, None, Format(), 1 << 20)]

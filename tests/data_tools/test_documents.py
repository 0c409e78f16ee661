"""Reading records: where documents begin and end, and the file and line of a bad one."""

import pytest

from data_tools import documents
from data_tools.documents import BadRecord, check_inputs, parse, read_batches


def texts(path, separator=None, text_field="text"):
    return [text for batch in read_batches([path], separator) for text in parse(batch, text_field)]


def test_jsonl_keeps_every_character(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"body": "a\\n\\u0000"}\r\n\n{"body": "  ", "text": 3}')
    assert texts(path, text_field="body") == ["a\n\0", "  "]


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
    assert texts(path, separator) == expected


@pytest.mark.parametrize("batch_bytes", [1, 30, 10**6])
def test_batches_change_nothing(batch_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BATCH_BYTES", batch_bytes)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text": "document {i}"}}\n\n' for i in range(7)))
    batches = list(read_batches([path, path]))
    assert [text for batch in batches for text in parse(batch, "text")] == [
        f"document {i}" for i in range(7)
    ] * 2
    assert [number for batch in batches for number in batch.numbers] == [1, 3, 5, 7, 9, 11, 13] * 2
    assert all(sum(map(len, batch.records[:-1])) < batch_bytes for batch in batches)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b'{"text": "a"', "broken JSON"),
        (b'{"body": "a"}', "no field 'text'"),
        (b'["text"]', "no field 'text'"),
        (b'{"text": 3}', "is int, not a string"),
        (b'{"text": null}', "is NoneType, not a string"),
        (b'{"text": ""}', "the document is empty"),
        (b'{"text": "\\ud800"}', "a lone surrogate"),
        (b'{"text": "\xff"}', "not valid UTF-8 .* at byte 11"),
        (b'{"text": ' + b"1" * 5000 + b"}", "Python does not read"),
        (b'{"text": ' + b"[" * 100_000 + b"}", "Python does not read"),
    ],
    ids=["json", "field", "list", "int", "null", "empty", "surrogate", "utf8", "digits", "brackets"],
)
def test_bad_record_names_file_and_line(record, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + record + b"\n")
    with pytest.raises(BadRecord, match=rf"bad\.jsonl, line 3: .*{message}"):
        texts(path)


def test_bad_bytes_in_txt_name_their_own_line(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"first\n---\nsecond\nthird \xff\n")
    with pytest.raises(BadRecord, match=r"bad\.txt, line 4: not valid UTF-8 .* at byte 7"):
        texts(path, "---")


def test_empty_txt(tmp_path):
    (tmp_path / "in.txt").touch()
    with pytest.raises(BadRecord, match=r"in\.txt, line 1: the document is empty"):
        texts(tmp_path / "in.txt")


def test_inputs_that_are_not_there_or_unknown(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        check_inputs([tmp_path / "none.jsonl"])
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"a\.csv: expected a \.jsonl or \.txt"):
        check_inputs([tmp_path / "a.csv"])


@pytest.mark.parametrize(
    ("name", "separator", "message"),
    [("in.txt", "\n\n", "is one line, without its end"), ("in.jsonl", "---", "is for .txt files")],
    ids=["line-ends", "jsonl"],
)
def test_separator_that_could_never_be_met(name, separator, message, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"--document-separator {message}"):
        check_inputs([tmp_path / name], separator)

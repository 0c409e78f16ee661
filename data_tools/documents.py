"""Read documents from jsonl and plain text, in batches that workers parse and that know their place."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Some consecutive raw records of one file; ``records[i]`` begins at line ``numbers[i]``, from 1."""

    path: Path
    numbers: list[int]
    records: list[bytes]


class BadRecord(ValueError):
    """A record that is not a document; the message names file and line."""


def check_inputs(paths: Sequence[Path], document_separator: str | None = None) -> None:
    """Raise FileNotFoundError or ValueError for an input that is missing or of an unknown kind, or for a
    separator that could never be met."""
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"--input {path}: there is no such file")
        if path.suffix not in (".jsonl", ".txt"):
            raise ValueError(f"--input {path}: expected a .jsonl or .txt file")
    if document_separator is None:
        return
    if "\n" in document_separator:
        raise ValueError("--document-separator is one line, without its end; '' stands for an empty line")
    if not any(path.suffix == ".txt" for path in paths):
        raise ValueError("--document-separator is for .txt files and no --input is one: leave it out")


def read_batches(paths: Sequence[Path], document_separator: str | None = None) -> Iterator[Batch]:
    """Raw records of all files in order, about ``BATCH_BYTES`` at a time."""
    for path in paths:
        raw = _jsonl_records(path) if path.suffix == ".jsonl" else _txt_records(path, document_separator)
        numbers: list[int] = []
        records: list[bytes] = []
        size = 0
        for number, record in raw:
            numbers.append(number)
            records.append(record)
            size += len(record)
            if size >= BATCH_BYTES:
                yield Batch(path, numbers, records)
                numbers, records, size = [], [], 0
        if records:
            yield Batch(path, numbers, records)


def parse(batch: Batch, text_field: str) -> list[str]:
    """The texts of a batch.

    Raises:
        BadRecord: broken JSON, no such field, not a string, an empty document or invalid UTF-8.
    """
    is_jsonl = batch.path.suffix == ".jsonl"
    texts = []
    for number, record in zip(batch.numbers, batch.records, strict=True):
        text = _decode(record, batch.path, number)
        where = f"{batch.path}, line {number}"
        if is_jsonl:
            text = _field(text, text_field, where)
        if not text:
            raise BadRecord(f"{where}: the document is empty; take it out")
        texts.append(text)
    return texts


def _decode(record: bytes, path: Path, number: int) -> str:
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + record.count(b"\n", 0, error.start)
        column = error.start - record.rfind(b"\n", 0, error.start)
        raise BadRecord(f"{path}, line {line}: not valid UTF-8 ({error.reason} at byte {column})") from error


def _field(line: str, text_field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRecord(f"{where}: broken JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
        raise BadRecord(f"{where}: JSON that Python does not read ({error})") from error
    if not isinstance(record, dict) or text_field not in record:
        raise BadRecord(f"{where}: no field {text_field!r} (--text-field names another)")
    text = record[text_field]
    if not isinstance(text, str):
        raise BadRecord(f"{where}: field {text_field!r} is {type(text).__name__}, not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(f"{where}: field {text_field!r} holds a lone surrogate at {error.start}") from error
    return text


def _jsonl_records(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _txt_records(path: Path, separator: str | None) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        if separator is None:
            yield 1, file.read()
            return
        end = separator.encode()
        start = 1
        lines: list[bytes] = []
        for number, line in enumerate(file, start=1):
            if line.rstrip(b"\r\n") == end:
                if lines:
                    yield start, b"".join(lines)
                start, lines = number + 1, []
            else:
                lines.append(line)
        if lines:
            yield start, b"".join(lines)

"""Read documents from jsonl and plain text, in batches that workers parse and that know their place."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Some consecutive raw records of one file; ``lines[i]`` is at line ``numbers[i]``, counted from 1."""

    path: Path
    numbers: list[int]
    lines: list[bytes]


class BadRecord(ValueError):
    """A record that is not a document; the message names file and line."""


def check_inputs(paths: Sequence[Path]) -> None:
    """Raise FileNotFoundError or ValueError for an input that is missing or of an unknown kind."""
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"--input {path}: there is no such file")
        if path.suffix not in (".jsonl", ".txt"):
            raise ValueError(f"--input {path}: expected a .jsonl or .txt file")


def read_batches(paths: Sequence[Path], document_separator: str | None = None) -> Iterator[Batch]:
    """Raw records of all files in order, about ``BATCH_BYTES`` at a time."""
    for path in paths:
        records = _jsonl_records(path) if path.suffix == ".jsonl" else _txt_records(path, document_separator)
        numbers: list[int] = []
        lines: list[bytes] = []
        size = 0
        for number, line in records:
            numbers.append(number)
            lines.append(line)
            size += len(line)
            if size >= BATCH_BYTES:
                yield Batch(path, numbers, lines)
                numbers, lines, size = [], [], 0
        if lines:
            yield Batch(path, numbers, lines)


def parse(batch: Batch, text_field: str) -> list[str]:
    """The texts of a batch.

    Raises:
        BadRecord: broken JSON, no such field, not a string, an empty document or invalid UTF-8.
    """
    is_jsonl = batch.path.suffix == ".jsonl"
    return [
        _text(line, f"{batch.path}, line {number}", text_field if is_jsonl else None)
        for number, line in zip(batch.numbers, batch.lines, strict=True)
    ]


def _text(raw: bytes, where: str, text_field: str | None) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(f"{where}: not valid UTF-8 ({error.reason} at byte {error.start})") from error
    if text_field is not None:
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadRecord(f"{where}: broken JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(record, dict) or text_field not in record:
            raise BadRecord(f"{where}: no field {text_field!r} (--text-field names another)")
        text = record[text_field]
        if not isinstance(text, str):
            raise BadRecord(f"{where}: field {text_field!r} is {type(text).__name__}, not a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRecord(
                f"{where}: field {text_field!r} holds a lone surrogate at {error.start}"
            ) from error
    if not text:
        raise BadRecord(f"{where}: the document is empty")
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
        start, document = 1, b""
        for number, line in enumerate(file, start=1):
            if line.rstrip(b"\r\n") == end:
                if document:
                    yield start, document
                start, document = number + 1, b""
            else:
                document += line
        if document:
            yield start, document

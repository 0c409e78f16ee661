"""What a document is: the rules that records of all kinds of files are held to."""

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

BROKEN_JSON = "broken JSON"
MISSING_FIELD = "missing field"
NOT_A_STRING = "not a string"
INVALID_UTF8 = "invalid UTF-8"
UNREADABLE = "unreadable"
EMPTY = "empty"
NO_TOKENS = "no tokens"
REJECT_KINDS = (BROKEN_JSON, MISSING_FIELD, NOT_A_STRING, INVALID_UTF8, UNREADABLE, EMPTY, NO_TOKENS)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HEAD_BYTES = 200
MISSING = object()


@dataclass(frozen=True)
class Format:
    """What a document looks like in the inputs."""

    text_field: str = "text"  # a.b is b within a, where there is no field a.b
    id_field: str | None = None
    document_separator: str | None = None  # .txt: a line between documents; None: the file is one


@dataclass(frozen=True)
class Reject:
    """A record that is not a document."""

    line: int  # from 1, counted from the start of the range; parquet: row
    kind: str  # one of REJECT_KINDS
    detail: str
    head: str  # its first bytes


@dataclass
class Batch:
    """Some consecutive documents of one range."""

    texts: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of each document, as in Reject.line
    ids: list[str] = field(default_factory=list)  # JSON, one a document, if there is an id field
    rejects: list[Reject] = field(default_factory=list)
    lines: int = 0  # that begin in the range
    size: int = 0  # bytes as stored in the file, or after decompression


class _Bad(Exception):
    def __init__(self, kind: str, detail: str) -> None:
        self.kind, self.detail = kind, detail


Parse = Callable[[Any, Format], tuple[str, Any]]
"""Of a record the text and the id; raises ``_Bad``."""


def add(batch: Batch, number: int, record: Any, form: Format, parse: Parse) -> None:
    """Add record ``number`` to the batch: to its documents, or to its rejects with the reason."""
    try:
        text, identifier = parse(record, form)
        if not text:
            raise _Bad(EMPTY, "the document is empty")
        if form.id_field is not None:
            batch.ids.append(_id_json(identifier, form.id_field))
    except _Bad as bad:
        batch.rejects.append(Reject(number, bad.kind, bad.detail, _head(record)))
        return
    batch.texts.append(text)
    batch.numbers.append(number)


def without_tokens(batch: Batch, lengths: Sequence[int]) -> Batch:
    """Make rejects of the documents of which the tokenizer leaves nothing.

    Args:
        batch: as it was read.
        lengths: tokens of each of its documents.
    """
    kept = [index for index, length in enumerate(lengths) if length]
    rejects = [
        Reject(number, *_why_nothing(text), _head(text[:HEAD_BYTES].encode()))
        for text, number, length in zip(batch.texts, batch.numbers, lengths, strict=True)
        if not length
    ]
    return replace(
        batch,
        texts=[batch.texts[index] for index in kept],
        numbers=[batch.numbers[index] for index in kept],
        ids=[batch.ids[index] for index in kept] if batch.ids else [],
        rejects=sorted([*batch.rejects, *rejects], key=lambda reject: reject.line),
    )


def _why_nothing(text: str) -> tuple[str, str]:
    if text.isspace():
        return EMPTY, "the document is white space, of which the tokenizer leaves nothing"
    return NO_TOKENS, "the tokenizer knows none of its characters (--tokenizer-model names another)"


def parse_line(line: bytes, form: Format) -> tuple[str, Any]:
    """Of a line of JSON."""
    decoded = _decode(line)
    try:
        record = json.loads(decoded)
    except json.JSONDecodeError as error:
        raise _Bad(BROKEN_JSON, f"{error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
        raise _Bad(BROKEN_JSON, f"Python does not read it: {error}") from error
    if not isinstance(record, dict):
        raise _Bad(MISSING_FIELD, f"not an object, so it has no field {form.text_field!r}")
    # A lone surrogate can only come from an escape.
    return _fields(record, form, may_hold_surrogates="\\u" in decoded)


def parse_text(record: bytes, form: Format) -> tuple[str, Any]:
    """Of a text without fields."""
    return _decode(record), None


def parse_row(record: dict[str, Any], form: Format) -> tuple[str, Any]:
    """Of a row; a cell that could not be read is the exception that said so."""
    for name, cell in record.items():
        if isinstance(cell, Exception):
            kind = INVALID_UTF8 if isinstance(cell, UnicodeError) else UNREADABLE
            raise _Bad(kind, f"column {name!r}: {cell}")
    record = {name: _decode(cell) if isinstance(cell, bytes) else cell for name, cell in record.items()}
    return _fields(record, form, may_hold_surrogates=False)


def find_field(record: dict[str, Any], name: str) -> Any:
    """The field ``name``, or for a.b field b of the object a; ``MISSING`` if there is neither."""
    if name in record:
        return record[name]
    for dot in (place for place, letter in enumerate(name) if letter == "."):
        if isinstance(inner := record.get(name[:dot]), dict):
            value = find_field(inner, name[dot + 1 :])
            if value is not MISSING:
                return value
    return MISSING


def _fields(record: dict[str, Any], form: Format, *, may_hold_surrogates: bool) -> tuple[str, Any]:
    text = _field(record, form.text_field, "--text-field")
    identifier = None if form.id_field is None else _field(record, form.id_field, "--id-field")
    if isinstance(text, bytes):  # of a column within another one
        text = _decode(text)
    if not isinstance(text, str):
        raise _Bad(NOT_A_STRING, f"field {form.text_field!r} is {type(text).__name__}, not a string")
    if may_hold_surrogates:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            detail = f"field {form.text_field!r} holds a lone surrogate at {error.start}"
            raise _Bad(INVALID_UTF8, detail) from error
    return text, identifier


def _field(record: dict[str, Any], name: str, flag: str) -> Any:
    value = find_field(record, name)
    if value is MISSING:
        raise _Bad(MISSING_FIELD, f"no field {name!r} ({flag} names another)")
    return value


def _id_json(identifier: Any, name: str) -> str:
    """The id as one line of JSON that can be written as UTF-8."""
    try:
        line = json.dumps(identifier, ensure_ascii=False, allow_nan=False, default=_plain)
        line.encode("utf-8")
    except UnicodeError as error:
        what = "a lone surrogate" if isinstance(error, UnicodeEncodeError) else "bytes that are no text"
        raise _Bad(INVALID_UTF8, f"field {name!r} holds {what}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise _Bad(UNREADABLE, f"field {name!r} is nothing that JSON can hold: {error}") from error
    return line


def _plain(value: Any) -> str:
    """What JSON has no word for, as a column of parquet may hold it: times, decimals, bytes."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return str(value)


def _head(record: Any) -> str:
    if isinstance(record, dict):
        record = repr(record).encode("utf-8", "backslashreplace")
    return record[:HEAD_BYTES].decode("utf-8", "backslashreplace").rstrip("\r\n")


def _decode(record: bytes) -> str:
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError as error:
        line = record.count(b"\n", 0, error.start)
        column = error.start - record.rfind(b"\n", 0, error.start)
        where = f"byte {column}" if not line else f"line {line + 1} of the document, byte {column}"
        raise _Bad(INVALID_UTF8, f"{error.reason} at {where}") from error

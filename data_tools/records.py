"""Read the documents of a byte range of a file in batches; what is not a document says why and where."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

from data_tools.inputs import Source

BROKEN_JSON = "broken JSON"
MISSING_FIELD = "missing field"
NOT_A_STRING = "not a string"
INVALID_UTF8 = "invalid UTF-8"
EMPTY = "empty"
NO_TOKENS = "no tokens"
REJECT_KINDS = (BROKEN_JSON, MISSING_FIELD, NOT_A_STRING, INVALID_UTF8, EMPTY, NO_TOKENS)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HEAD_BYTES = 200


@dataclass(frozen=True)
class Format:
    """What a document looks like in the inputs."""

    text_field: str = "text"
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


def read_batches(
    source: Source, start: int, end: int | None, form: Format, batch_bytes: int
) -> Iterator[Batch]:
    """Documents that begin in bytes (parquet: row groups) ``start`` to ``end`` of ``source``.

    Raises:
        ValueError: the file cannot be read as what its name says (a damaged archive, no such column, a .json
            that is not JSON lines).
        OSError: it cannot be read at all.
    """
    if source.kind == "parquet":
        yield from _parquet_batches(source, start, end, form, batch_bytes)
        return
    with _open_lines(source) as file:
        try:
            if source.kind == "json":
                _check_json_lines(source)
            if source.kind in ("json", "jsonl"):
                yield from _jsonl_batches(file, start, end, form, batch_bytes)
            elif form.document_separator is None:
                yield _whole_file(file, form, source)
            else:
                yield from _separated_batches(file, start, end, form, batch_bytes)
        except (OSError, EOFError) as error:
            if source.compression is None:
                raise
            raise ValueError(f"--input {source.path}: damaged or cut off ({error})") from error


def _open_lines(source: Source) -> IO[bytes]:
    if source.compression is None and not isinstance((file := source.open()), io.BufferedReader):
        return io.BufferedReader(file, 1 << 20)  # type: ignore[type-var]
    if source.compression is None:
        return file
    import pyarrow

    name = {"gz": "gzip", "zst": "zstd"}[source.compression]
    # Arrow tells where a stream ends too early; the usual reader of zstd takes that for the end.
    return io.BufferedReader(pyarrow.CompressedInputStream(source.open(), name), 1 << 20)


def _check_json_lines(source: Source) -> None:
    """A .json may be one array or object, and a range of it would be all bad records: the head tells."""
    with _open_lines(source) as file:
        head = file.read(HEAD_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip()
    if head and (not head.startswith(b"{") or head.partition(b"\n")[0].strip() == b"{"):
        raise ValueError(
            f"--input {source.path}: not JSON lines, one object a line; it begins with "
            f"{head[:20].decode('utf-8', 'backslashreplace')!r}: convert it (an array: jq -c '.[]'), "
            "or leave it out"
        )


def _jsonl_batches(
    file: IO[bytes], start: int, end: int | None, form: Format, batch_bytes: int
) -> Iterator[Batch]:
    position = _seek_line(file, start, end)
    line_number = 1
    while end is None or position < end:
        hint = batch_bytes if end is None else min(batch_bytes, end - position)
        lines = file.readlines(hint)  # until they are more than ``hint`` bytes, so one line may be too many
        if end is not None and lines and position + sum(map(len, lines[:-1])) >= end:
            lines.pop()
        if not lines:
            return
        if position == 0 and lines[0].startswith(BYTE_ORDER_MARK):
            lines[0] = lines[0][len(BYTE_ORDER_MARK) :]
            position += len(BYTE_ORDER_MARK)
        batch = Batch(lines=len(lines), size=sum(map(len, lines)))
        for number, line in enumerate(lines, start=line_number):
            if not line.isspace():
                _add(batch, number, line, form, _parse_line)
        position += batch.size
        line_number += len(lines)
        del lines, line  # not to be kept while the batch is worked on: it may be one huge document
        yield batch


def _seek_line(file: IO[bytes], start: int, end: int | None) -> int:
    """Go to the first line that begins at or after byte ``start``; returns where that is, if before ``end``.

    Reads no further than ``end``: a line may be as long as hundreds of ranges.
    """
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + len(file.readline(-1 if end is None else end - start + 1))


def _add(batch: Batch, number: int, record: Any, form: Format, parse: Any) -> None:
    try:
        text, identifier = parse(record, form)
        if not text:
            raise _Bad(EMPTY, "the document is empty")
    except _Bad as bad:
        batch.rejects.append(Reject(number, bad.kind, bad.detail, _head(record)))
        return
    batch.texts.append(text)
    batch.numbers.append(number)
    if form.id_field is not None:
        batch.ids.append(json.dumps(identifier, ensure_ascii=False))


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


def _parse_line(line: bytes, form: Format) -> tuple[str, Any]:
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


def _fields(record: dict[str, Any], form: Format, *, may_hold_surrogates: bool) -> tuple[str, Any]:
    for name in filter(None, (form.text_field, form.id_field)):
        if name not in record:
            flag = "--text-field" if name == form.text_field else "--id-field"
            raise _Bad(MISSING_FIELD, f"no field {name!r} ({flag} names another)")
    text = record[form.text_field]
    if not isinstance(text, str):
        raise _Bad(NOT_A_STRING, f"field {form.text_field!r} is {type(text).__name__}, not a string")
    if may_hold_surrogates:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            detail = f"field {form.text_field!r} holds a lone surrogate at {error.start}"
            raise _Bad(INVALID_UTF8, detail) from error
    return text, record[form.id_field] if form.id_field is not None else None


def _parse_text(record: bytes, form: Format) -> tuple[str, Any]:
    return _decode(record), None


def _whole_file(file: IO[bytes], form: Format, source: Source) -> Batch:
    content = file.read()
    batch = Batch(lines=content.count(b"\n") + 1, size=len(content))
    if form.id_field is not None:
        raise ValueError(f"--id-field: a .txt file has no fields ({source.path})")
    _add(batch, 1, content, form, _parse_text)
    return batch


def _separated_batches(
    file: IO[bytes], start: int, end: int | None, form: Format, batch_bytes: int
) -> Iterator[Batch]:
    assert form.document_separator is not None
    separator = form.document_separator.encode()
    position = _seek_line(file, start, end)
    batch = Batch()
    # Before the first separator of a later range is the end of a document of the range before it.
    document: list[bytes] | None = [] if start == 0 else None
    first_line = 1
    for number, line in enumerate(file, start=1):
        inside = end is None or position < end
        if line.rstrip(b"\r\n") == separator:
            if document:
                _add(batch, first_line, b"".join(document), form, _parse_text)
            document, first_line = [], number + 1
            if not inside:
                document = None
                break
        elif document is not None:
            document.append(line)
        elif not inside:
            break  # no separator in this range: all of it belongs to a document that began before
        if inside:
            batch.lines += 1
        position += len(line)
        batch.size += len(line)
        if batch.size >= batch_bytes and (batch.texts or batch.rejects):
            yield batch
            batch = Batch()
    if document:
        _add(batch, first_line, b"".join(document), form, _parse_text)
    yield batch


def open_parquet(source: Source) -> Any:
    """The ``pyarrow.parquet.ParquetFile`` of a source.

    Raises:
        ValueError: the file is something else.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(source.open())
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"--input {source.path}: not a parquet file ({error})") from error


def _parquet_batches(
    source: Source, start: int, end: int | None, form: Format, batch_bytes: int
) -> Iterator[Batch]:
    names = [name for name in (form.text_field, form.id_field) if name is not None]
    with open_parquet(source) as file:
        if missing := [name for name in names if name not in file.schema_arrow.names]:
            there = ", ".join(file.schema_arrow.names)
            raise ValueError(
                f"--input {source.path}: no column {missing[0]!r}; it has {there} "
                "(--text-field and --id-field name them)"
            )
        metadata = file.metadata
        groups = list(range(start, metadata.num_row_groups if end is None else end))
        rows = sum(metadata.row_group(group).num_rows for group in groups)
        total = sum(metadata.row_group(group).total_byte_size for group in groups)
        per_batch = max(1, min(65536, batch_bytes * rows // max(1, total)))
        number = 0
        for table in file.iter_batches(batch_size=per_batch, row_groups=groups, columns=names):
            batch = Batch(lines=table.num_rows, size=table.nbytes)
            for record in _rows(table):
                number += 1
                _add(batch, number, record, form, _parse_row)
            yield batch


def _rows(table: Any) -> list[dict[str, Any]]:
    try:
        return table.to_pylist()
    except UnicodeDecodeError:  # parquet promises UTF-8 and does not check it
        import pyarrow

        columns = {}
        for name, column in zip(table.schema.names, table.columns, strict=True):
            is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
            columns[name] = (column.cast(pyarrow.large_binary()) if is_text else column).to_pylist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _parse_row(record: dict[str, Any], form: Format) -> tuple[str, Any]:
    record = {name: _decode(cell) if isinstance(cell, bytes) else cell for name, cell in record.items()}
    return _fields(record, form, may_hold_surrogates=False)

"""Read the documents of a byte range of a file in batches; what is not a document says why and where."""

import codecs
import io
from collections.abc import Iterator
from typing import IO

from data_tools.archives import DAMAGE, decompress, sniff, why_not
from data_tools.documents import (
    BYTE_ORDER_MARK,
    HEAD_BYTES,
    REJECT_KINDS,
    Batch,
    Format,
    Reject,
    add,
    parse_line,
    parse_text,
)
from data_tools.inputs import Source, is_url, open_named
from data_tools.parquet import parquet_batches

__all__ = ["REJECT_KINDS", "Batch", "Format", "Reject", "read_batches"]

WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
"""Byte order marks of UTF-16 and UTF-32."""


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
        yield from parquet_batches(source, start, end, form, batch_bytes)
        return
    try:
        check_head(source)
        with _open_lines(source) as file:
            if source.kind in ("json", "jsonl"):
                yield from _jsonl_batches(file, start, end, form, batch_bytes)
            elif form.document_separator is None:
                yield _whole_file(file, form, source)
            else:
                yield from _separated_batches(file, start, end, form, batch_bytes)
    except DAMAGE as error:
        if isinstance(error, OSError) and (source.compression is None or error.errno is not None):
            raise _with_name(error, source) from error
        raise ValueError(f"--input {source.path}: {why_not(error)}") from error
    except Exception as error:
        if is_url(source.path) and not isinstance(error, ValueError):  # what a store's own package raises
            raise ValueError(f"--input {source.path}: {type(error).__name__}: {error}") from error
        raise


def _with_name(error: OSError, source: Source) -> OSError:
    """What a read raises names no file."""
    if error.errno is None:
        return OSError(f"--input {source.path}: {error}")
    return OSError(error.errno, error.strerror, source.path)


def _open_lines(source: Source) -> IO[bytes]:
    file = open_named(source)
    if source.compression is not None:
        return decompress(file, source.compression)
    if not isinstance(file, io.BufferedReader):
        return io.BufferedReader(file, 1 << 20)  # type: ignore[type-var]
    return file


def check_head(source: Source) -> None:
    """Look at the first bytes of a file of text, whichever range of it is to be read.

    Raises:
        ValueError: it is not what its name says: another compression or encoding, or one array of JSON.
    """
    with open_named(source) as file:
        head = file.read(HEAD_BYTES)
    if source.compression is not None:
        if sniff(head) != source.compression:
            raise ValueError(_other_kind(source, sniff(head), head))
        with _open_lines(source) as file:
            head = file.read(HEAD_BYTES)
        if (found := sniff(head)) is not None and not _is_utf8(head):
            raise ValueError(f"--input {source.path}: what is packed in it is {found} again: unpack it once")
    # A text may begin with the letters of a sign; no JSON does.
    elif (found := sniff(head)) is not None and (source.kind != "txt" or not _is_utf8(head)):
        raise ValueError(_other_kind(source, found, head))
    if head.startswith(WIDE_MARKS) or _is_wide(head, source.kind):
        raise ValueError(
            f"--input {source.path}: not UTF-8 but UTF-16 or UTF-32, by its first bytes: convert it: "
            "iconv -f UTF-16 -t UTF-8"
        )
    head = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if (
        source.kind == "json"
        and head
        and (not head.startswith(b"{") or head.partition(b"\n")[0].strip() == b"{")
    ):
        raise ValueError(
            f"--input {source.path}: not JSON lines, one object a line; it begins with "
            f"{head[:20].decode('utf-8', 'backslashreplace')!r}: convert it (an array: jq -c '.[]'), "
            "or leave it out"
        )


def _other_kind(source: Source, found: str | None, head: bytes) -> str:
    named = f".{source.compression}" if source.compression else f".{source.kind}"
    if found is not None:
        ending = ".parquet" if found == "parquet" else f".{source.kind}.{found}"
        return (
            f"--input {source.path}: by its first bytes {found}, not {named}: rename it, to end with {ending}"
        )
    if not head or not _is_utf8(head) or min(head) < ord("\t"):
        return f"--input {source.path}: damaged or cut off (it does not begin as {named} does)"
    return f"--input {source.path}: text, not {named}: rename it, without {named} at its end"


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _is_wide(head: bytes, kind: str) -> bool:
    """Whether every other byte is 0, as in ASCII that was written as UTF-16 without a mark."""
    if kind != "txt" and len(head) > 1 and (head[0] == 0) != (head[1] == 0):
        return True
    return len(head) >= 8 and any(head[0::2]) != any(head[1::2])


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
        batch = Batch(lines=len(lines), size=sum(map(len, lines)))
        for number, line in enumerate(lines, start=line_number):
            line = line.removeprefix(BYTE_ORDER_MARK)  # not of the first alone: files are put together
            if line and not line.isspace():
                add(batch, number, line, form, parse_line)
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


def _whole_file(file: IO[bytes], form: Format, source: Source) -> Batch:
    content = file.read()
    batch = Batch(lines=content.count(b"\n") + 1, size=len(content))
    if form.id_field is not None:
        raise ValueError(f"--id-field: a .txt file has no fields ({source.path})")
    add(batch, 1, content.removeprefix(BYTE_ORDER_MARK), form, parse_text)
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
        size = len(line)
        if start == 0 and number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line.rstrip(b"\r\n") == separator:
            if document:
                add(batch, first_line, b"".join(document), form, parse_text)
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
        position += size
        batch.size += size
        if batch.size >= batch_bytes and (batch.texts or batch.rejects):
            yield batch
            batch = Batch()
    if document:
        add(batch, first_line, b"".join(document), form, parse_text)
    yield batch

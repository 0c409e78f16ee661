"""Documents of parquet files: what Arrow raises names the file, and a cell that cannot be read its row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data_tools.documents import Batch, Format, add, parse_row
from data_tools.inputs import Source, open_named


def open_parquet(source: Source) -> Any:
    """The ``pyarrow.parquet.ParquetFile`` of a source.

    Raises:
        ValueError: the file is something else.
    """
    from pyarrow.parquet import ParquetFile

    with _naming(source, "not a parquet file"):
        return ParquetFile(open_named(source))


def parquet_batches(
    source: Source, start: int, end: int | None, form: Format, batch_bytes: int
) -> Iterator[Batch]:
    """Documents of the row groups ``start`` to ``end``, see ``records.read_batches``."""
    names = [name for name in (form.text_field, form.id_field) if name is not None]
    with open_parquet(source) as file:
        with _naming(source, "its schema is not one that Arrow reads"):
            schema = file.schema_arrow
        if missing := [name for name in names if not _has(schema, name)]:
            raise ValueError(
                f"--input {source.path}: no column {missing[0]!r}; it has {', '.join(schema.names)} "
                "(--text-field and --id-field name them)"
            )
        metadata = file.metadata
        groups = list(range(start, metadata.num_row_groups if end is None else end))
        rows = sum(metadata.row_group(group).num_rows for group in groups)
        total = sum(metadata.row_group(group).total_byte_size for group in groups)
        per_batch = max(1, min(65536, batch_bytes * rows // max(1, total)))
        number = 0
        for table in _tables(source, file, per_batch, groups, names):
            batch = Batch(lines=table.num_rows, size=table.nbytes)
            for record in _rows(table):
                number += 1
                add(batch, number, record, form, parse_row)
            yield batch


@contextmanager
def _naming(source: Source, what: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not of the file's content
            raise
        raise ValueError(f"--input {source.path}: {what} ({error})") from error


def _tables(
    source: Source, file: Any, size: int, groups: Sequence[int], names: Sequence[str]
) -> Iterator[Any]:
    """Record batches of ``size`` rows at most."""
    if not groups:
        return
    tables = file.iter_batches(batch_size=size, row_groups=groups, columns=names)
    number = 0
    while True:
        where = f"row group {groups[0]}" + (f" to {groups[-1]}" if len(groups) > 1 else "")
        with _naming(
            source, f"damaged, or of a kind that Arrow does not read, {where} after {number:,} rows"
        ):
            table = next(tables, None)
        if table is None:
            return
        number += table.num_rows
        yield table


def _has(fields: Any, name: str) -> bool:
    """Whether a schema or a struct has the column ``name``, or for a.b column b in the struct a."""
    import pyarrow

    inner = {field.name: field.type for field in fields}
    return name in inner or any(
        pyarrow.types.is_struct(inner.get(name[:dot])) and _has(inner[name[:dot]], name[dot + 1 :])
        for dot, letter in enumerate(name)
        if letter == "." and name[:dot] in inner
    )


def _rows(table: Any) -> list[dict[str, Any]]:
    try:
        return table.to_pylist()
    except Exception:  # of Python's types or Arrow's: which cell it is, each of them tells
        columns = [[_cell(cell) for cell in _without_promise(column)] for column in table.columns]
        return [dict(zip(table.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _without_promise(column: Any) -> Any:
    """Strings as bytes: parquet promises UTF-8 and does not check it."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kinds = pyarrow.types
    is_text = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
    return column.cast(pyarrow.large_binary()) if any(test(column.type) for test in is_text) else column


def _cell(cell: Any) -> Any:
    """Its value, as text where Python has no such value, or the exception that says why there is none."""
    import pyarrow

    try:
        return cell.as_py()
    except Exception as error:
        try:
            return cell.cast(pyarrow.string()).as_py()  # a time in ns, or after the year 9999
        except Exception:
            return error

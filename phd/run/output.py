"""Standard output and error that may be lost without ending the program."""

import io
import sys
from typing import Any


def outlive_readers() -> None:
    """Let the program go on when what it prints has nowhere to go: the ``tee`` of a pipe got the ^C too, the
    terminal is closed, the disk of the log is full, a sample has letters that the locale lacks. Python would
    raise at the next print, and what a training had not saved were lost. What cannot be written is dropped, a
    letter that cannot is escaped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:  # closed by whoever started this
            replacement = io.TextIOWrapper(
                io.BufferedWriter(_Forgiving(stream.fileno(), "wb", closefd=False)),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, replacement)


class _Forgiving(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)  # None if a non-blocking pipe is full
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written

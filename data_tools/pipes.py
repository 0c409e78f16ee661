"""Standard input and pipes as inputs: kept in a file beside the output while the command runs.

Workers read ranges of files, and a run that goes on has to know its inputs again: by their content, as a pipe
has no name and no time.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from data_tools.archives import COMPRESSIONS, sniff
from data_tools.files import lock
from data_tools.inputs import Source, is_url
from data_tools.places import check_prefix, refuse_over_inputs

STANDARD_INPUT = "-"
PART_BYTES = 1 << 20


@contextmanager
def spooled(
    inputs: Sequence[str | Path], output_prefix: Path, *, is_text: bool
) -> Iterator[list[str | Path | Source]]:
    """The inputs, with files in the place of pipes, which are deleted at the end.

    Args:
        inputs: as ``find_sources`` takes them, and ``-`` for standard input.
        output_prefix: whose folder the files lie in, hidden.
        is_text: whether what comes is text with separators, or JSON lines. That it is compressed, or parquet,
            is seen from its first bytes.

    Raises:
        ValueError: standard input is a terminal or named twice, or another run has its place.
        OSError: what comes cannot be kept.
    """
    if any(map(is_pipe, inputs)):
        check_prefix(output_prefix, (), "--output-prefix")
    if sum(str(name) == STANDARD_INPUT for name in inputs) > 1:
        raise ValueError("--input -: standard input can be read once: name it once")
    with ExitStack() as stack:
        sources: list[str | Path | Source] = []
        for number, name in enumerate(inputs):
            if not is_pipe(name):
                sources.append(name)
                continue
            if str(name) == STANDARD_INPUT:
                if sys.stdin.isatty():
                    raise ValueError("--input -: standard input is a terminal: pipe the documents in")
                stream: IO[bytes] = sys.stdin.buffer
            else:
                stream = stack.enter_context(open(name, "rb"))
            others = [each for each in inputs if not is_pipe(each)]
            target = output_prefix.with_name(f".{output_prefix.name}.input-{number}")
            sources.append(stack.enter_context(_spooled(stream, target, is_text, others)))
        yield sources


def is_pipe(name: str | Path) -> bool:
    """Whether an input can be read once and from its beginning only."""
    text = str(name)
    if text == STANDARD_INPUT or text.startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        return True
    if is_url(text) or not os.path.exists(text):
        return False
    return stat.S_ISFIFO(os.stat(text).st_mode)


@contextmanager
def _spooled(
    stream: IO[bytes], target: Path, is_text: bool, others: Sequence[str | Path]
) -> Iterator[Source]:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = stream.read(PART_BYTES)
    ending = ".txt" if is_text else ".json"  # which is JSON lines too, and an array is told
    if (found := sniff(part)) == "parquet":
        ending = ".parquet"
    elif found in COMPRESSIONS:
        ending += f".{found}"
    file = target.with_name(f"{target.name}{ending}")
    refuse_over_inputs([file], others, "--output-prefix")
    digest = hashlib.sha256()
    with lock(file):
        try:
            with open(file, "wb") as copy:
                while part:
                    digest.update(part)
                    copy.write(part)
                    part = stream.read(PART_BYTES)
            yield Source(os.path.abspath(file), file.stat().st_size, f"sha256 {digest.hexdigest()}")
        except OSError as error:
            if error.filename is None and error.errno is not None:
                raise OSError(error.errno, error.strerror, str(file)) from error
            raise
        finally:
            file.unlink(missing_ok=True)

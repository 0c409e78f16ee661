"""Where a command may write: never over what it reads, never over what it did not write."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_tools.files import append_suffix

DATA_SET_ENDS = (".bin", ".idx", ".ids.jsonl", ".rejects.jsonl", ".json")
LOCAL_URLS = ("file://", "local://")


def file_key(path: str | Path) -> tuple[int, int] | None:
    """Device and inode of a file, the same under all of its names; None where there is none."""
    name = os.fspath(path)
    for start in LOCAL_URLS:
        name = name.removeprefix(start)
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def data_set_files(prefix: Path) -> Iterator[Path]:
    """Every file that writing the data set ``prefix`` may make or replace."""
    for end in DATA_SET_ENDS:
        yield append_suffix(prefix, end)
        yield append_suffix(prefix, f"{end}.tmp")
    yield append_suffix(prefix, ".idx.tmp.offsets")


def refuse_over_inputs(outputs: Iterable[Path], inputs: Iterable[str | Path], flag: str) -> None:
    """Raise ValueError if a file to be written is one that is read, under whatever name.

    Args:
        outputs: all that may be written.
        inputs: all that is read.
        flag: that names the place.
    """
    read = {file_key(path): path for path in inputs}
    read.pop(None, None)
    for output in outputs:
        if (key := file_key(output)) in read:
            raise ValueError(
                f"{flag}: {output} would be written, and it is the input {read[key]}: choose another {flag}"
            )


def refuse_inputs_within(folder: Path, inputs: Iterable[str | Path], flag: str) -> None:
    """Raise ValueError if an input lies in ``folder``, which is the run's own and goes at its end."""
    if (own := file_key(folder)) is None:
        return
    known: dict[str, bool] = {}
    for path in inputs:
        above = os.path.dirname(os.path.realpath(path))
        if above not in known:
            known[above] = any(file_key(each) == own for each in (Path(above), *Path(above).parents))
        if known[above]:
            raise ValueError(
                f"{path} lies in {folder}, which holds this run's work and is deleted at its end: "
                f"move it, or choose another {flag}"
            )


def refuse_twice(prefixes: Iterable[Path]) -> None:
    """Raise ValueError if two of the data sets are one, under whatever names."""
    known: dict[tuple[int, int], Path] = {}
    for prefix in prefixes:
        if (key := file_key(append_suffix(prefix, ".bin"))) is None:
            continue
        if key in known:
            raise ValueError(
                f"{prefix}: named twice, its documents would be in the data twice: leave it out"
                + (f" (it is {known[key]})" if known[key] != prefix else "")
            )
        known[key] = prefix


def real_prefix(prefix: Path) -> str:
    """A data set's prefix without links, also where its files are the links."""
    real = os.path.realpath(append_suffix(prefix, ".bin"))
    return real.removesuffix(".bin") if real.endswith(".bin") else str(prefix.resolve())


def check_prefix(prefix: Path, ends: Iterable[str], flag: str) -> None:
    """Raise ValueError if a prefix already has an ending that will be appended, or no name."""
    if prefix.name in ("", "..") or prefix == Path("."):
        raise ValueError(f"{flag} {prefix}: expected a folder and the beginning of a name, like data/corpus")
    for end in ends:
        if prefix.name.endswith(end):
            raise ValueError(
                f"{flag} {prefix}: {end} is appended to it: give {str(prefix).removesuffix(end) or 'a name'}"
            )

"""What --input names: files, folders, patterns, object stores; as a list of sources in a fixed order."""

import glob
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

KINDS = {
    ".jsonl": ("jsonl", None),
    ".jsonl.gz": ("jsonl", "gz"),
    ".jsonl.zst": ("jsonl", "zst"),
    ".parquet": ("parquet", None),
    ".txt": ("txt", None),
}
KNOWN = ", ".join(KINDS)


@dataclass(frozen=True)
class Source:
    """One input file, and what tells whether it has changed."""

    path: str  # absolute, or a URL
    size: int  # bytes
    version: str  # mtime in ns, or what an object store has in its place

    @property
    def kind(self) -> str:
        """jsonl, parquet or txt."""
        return self._suffix()[0]

    @property
    def compression(self) -> str | None:
        """gz, zst or None."""
        return self._suffix()[1]

    def identity(self) -> dict[str, Any]:
        """For the card: equal means unchanged."""
        return asdict(self)

    def open(self) -> IO[bytes]:
        """The file's bytes as they are stored."""
        if is_url(self.path):
            return fsspec().open(self.path, "rb").open()
        return open(self.path, "rb")

    def _suffix(self) -> tuple[str, str | None]:
        return KINDS[known_suffix(self.path) or ""]


def known_suffix(path: str) -> str | None:
    """The suffix in ``KINDS`` that a path ends with."""
    return next((suffix for suffix in KINDS if path.lower().endswith(suffix)), None)


def is_url(path: str) -> bool:
    """s3://bucket/x and the like; never a local path."""
    return "://" in path


def fsspec() -> Any:
    """fsspec, for object stores.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise ValueError(
            "--input: a URL needs the package fsspec, and the one of its store (s3fs, gcsfs, ...)"
        ) from error
    return fsspec


def find_sources(inputs: Sequence[str | Path]) -> list[Source]:
    """All files that ``inputs`` name: in the order given, and sorted by name within a folder or pattern.

    Raises:
        FileNotFoundError: a path, folder or pattern has no file.
        ValueError: a file is of an unknown kind, or is named twice.
    """
    sources: list[Source] = []
    for name in map(str, inputs):
        sources += _remote(name) if is_url(name) else _local(name)
    seen: set[str] = set()
    for source in sources:
        if source.path in seen:
            raise ValueError(f"--input {source.path}: named twice, its documents would be in the data twice")
        seen.add(source.path)
    return sources


def _local(name: str) -> list[Source]:
    path = Path(name)
    if path.is_dir():
        found = sorted(_walk(path))
        if not found:
            raise FileNotFoundError(f"--input {name}: no {KNOWN} file in this folder")
    elif path.is_file():
        _check_kind(name)
        found = [name]
    elif glob.has_magic(name):
        found = sorted(entry for entry in glob.glob(name, recursive=True) if os.path.isfile(entry))
        if not found:
            raise FileNotFoundError(f"--input {name}: no file matches this pattern")
        for entry in found:
            _check_kind(entry)
    else:
        raise FileNotFoundError(f"--input {name}: there is no such file")
    sources = []
    for entry in found:
        status = os.stat(entry)
        sources.append(Source(os.path.abspath(entry), status.st_size, str(status.st_mtime_ns)))
    return sources


def _walk(folder: Path) -> list[str]:
    """The files of known kind below ``folder``, hidden ones and hidden folders left out."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]
        found += [
            os.path.join(root, file) for file in files if known_suffix(file) and not file.startswith(".")
        ]
    return found


def _remote(name: str) -> list[Source]:
    try:
        system, path = fsspec().core.url_to_fs(name)
    except (ValueError, ImportError) as error:  # an unknown protocol, or its package is missing
        raise ValueError(f"--input {name}: {error}") from error
    if glob.has_magic(path):
        found = sorted(system.glob(path))
    elif system.isdir(path):
        found = sorted(
            entry
            for entry in system.find(path)
            if known_suffix(entry) and "/." not in entry.removeprefix(path)
        )
    else:
        found = [path] if system.exists(path) else []
    if not found:
        raise FileNotFoundError(f"--input {name}: there is no such file")
    sources = []
    for entry in found:
        _check_kind(entry)
        info = system.info(entry)
        version = next(
            (info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if key in info), ""
        )
        sources.append(Source(system.unstrip_protocol(entry), int(info["size"]), str(version)))
    return sources


def _check_kind(path: str) -> None:
    if not known_suffix(path):
        raise ValueError(f"--input {path}: expected one of {KNOWN}")

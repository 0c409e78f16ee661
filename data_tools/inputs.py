"""What --input names: files, folders, patterns, object stores; as a list of sources in a fixed order."""

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from data_tools.archives import COMPRESSIONS
from data_tools.places import file_key

TEXTS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "txt"}
# How names end -> what the file holds, and how it is compressed. "json" is jsonl as Megatron's users name it.
KINDS: dict[str, tuple[str, str | None]] = {
    **{ending: (kind, None) for ending, kind in TEXTS.items()},
    **{f"{ending}.{how}": (kind, how) for ending, kind in TEXTS.items() for how in COMPRESSIONS},
    ".parquet": ("parquet", None),
}
KNOWN = f"{', '.join(TEXTS)} (each also with {', '.join(f'.{how}' for how in COMPRESSIONS)}), .parquet"


@dataclass(frozen=True)
class Source:
    """One input file, and what tells whether it has changed."""

    path: str  # absolute, or a URL
    size: int  # bytes
    version: str  # mtime in ns, or what an object store has in its place

    @property
    def kind(self) -> str:
        """jsonl, json, parquet or txt."""
        return self._suffix()[0]

    @property
    def compression(self) -> str | None:
        """gz, zst, xz, bz2 or None."""
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


def open_named(source: Source) -> IO[bytes]:
    """``source.open()``; what a store's package raises names the source.

    Raises:
        ValueError: the store refuses.
        OSError: the file cannot be opened.
    """
    try:
        return source.open()
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"--input {source.path}: {type(error).__name__}: {error}") from error


def find_sources(inputs: Sequence[str | Path | Source]) -> list[Source]:
    """All files that ``inputs`` name: in the order given, and sorted by name within a folder or pattern.

    Of a folder a line is printed: how many of its files are read, and what is left out. A file that lies in
    it under several names, by links, is read once.

    Raises:
        FileNotFoundError: a path, folder or pattern has no file.
        ValueError: a file is of an unknown kind, or two of ``inputs`` name the same.
    """
    sources: list[Source] = []
    seen: dict[tuple[int, int] | str, tuple[str, int]] = {}
    for number, name in enumerate(inputs):
        left_out: Counter[str] = Counter()
        found = [name] if isinstance(name, Source) else _find(str(name), left_out)
        kept = []
        for source in found:
            path, first = seen.setdefault(file_key(source.path) or source.path, (source.path, number))
            if path == source.path and first == number:
                kept.append(source)
            elif first == number:
                left_out["linked again"] += 1
            else:
                raise ValueError(
                    f"--input {source.path}: named twice, its documents would be in the data twice"
                    + (f" (it is {path})" if path != source.path else "")
                )
        if left_out:  # of a folder it has an entry always, if of 0
            _tell(str(name), kept, left_out)
        sources += kept
    return sources


def read_list(file: Path) -> list[str]:
    """The inputs that a file names, one a line.

    Raises:
        OSError: the list cannot be read.
        ValueError: it is empty, or names what is not there.
    """
    names = []
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not line.strip():
            continue
        name = os.fsdecode(line)
        if not (is_url(name) or os.path.exists(name) or glob.has_magic(name)):
            raise FileNotFoundError(f"--input-list {file}, line {number}: {name}: there is no such file")
        names.append(name)
    if not names:
        raise ValueError(f"--input-list {file}: it names no input")
    return names


def named_as_before(sources: Sequence[Source], before: Sequence[dict[str, Any]]) -> list[Source]:
    """The sources under the names that an earlier run knew them by, where both name the same file."""
    if len(sources) != len(before):
        return list(sources)
    return [_named(source, old["path"]) for source, old in zip(sources, before, strict=True)]


def _named(source: Source, path: str) -> Source:
    if path == source.path or known_suffix(path) != known_suffix(source.path):
        return source
    key = file_key(path)
    return replace(source, path=path) if key is not None and key == file_key(source.path) else source


def _find(name: str, left_out: Counter[str]) -> list[Source]:
    return _remote(name, left_out) if is_url(name) else _local(name, left_out)


def _local(name: str, left_out: Counter[str]) -> list[Source]:
    path = Path(name)
    if path.is_dir():
        found = _choose(name, _walk(path, left_out), left_out)
    elif path.is_file():
        _check_kind(name)
        found = [name]
    elif glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        found = [entry for entry in matches if os.path.isfile(entry)]
        if not found:
            raise FileNotFoundError(f"--input {name}: no file matches this pattern")
        for entry in found:
            _check_kind(entry)
        if len(found) < len(matches) and "**" not in name:
            left_out["folders"] += len(matches) - len(found)
    else:
        raise FileNotFoundError(f"--input {name}: there is no such file")
    sources = []
    for entry in found:
        status = os.stat(entry)
        if stat.S_ISREG(status.st_mode):
            sources.append(Source(os.path.abspath(entry), status.st_size, str(status.st_mtime_ns)))
        else:
            left_out["no files (pipes, devices)"] += 1
    return sources


def _walk(folder: Path, left_out: Counter[str]) -> list[str]:
    """The files below ``folder``, also below links to folders; what is hidden is left out."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above, or a second one to the same
            left_out["linked again"] += 1
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        left_out["hidden"] += sum(each.startswith(".") for each in (*folders, *files))
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        found += [os.path.join(root, file) for file in files if not file.startswith(".")]
    return found


def _choose(name: str, files: Iterable[str], left_out: Counter[str]) -> list[str]:
    """Those of a folder's files that hold documents, sorted; counts what is left out."""
    there, found = set(files), []
    for file in sorted(there):
        if _is_ours(file, there):
            left_out["written by phd data"] += 1
        elif known_suffix(file):
            found.append(file)
        else:
            stem, last = os.path.splitext(file.lower())
            inner = os.path.splitext(stem)[1]
            left_out[(inner if inner in KINDS else "") + last or "without a suffix"] += 1
    if not found:
        raise FileNotFoundError(f"--input {name}: no file in this folder ends with one of {KNOWN}")
    return found


def _is_ours(file: str, there: set[str]) -> bool:
    """Whether a file belongs to a data set, its work units or a tokenizer: they may lie beside the inputs."""
    folder = os.path.dirname(file)
    if folder.endswith(".units") and f"{folder}/plan.json" in there:
        return True
    ends = [end for end in (".json", ".ids.jsonl", ".rejects.jsonl") if file.endswith(end)]
    whose = file.removesuffix(ends[0]) if ends else ""
    return bool(ends) and (f"{whose}.bin" in there or (whose.endswith(".model") and whose in there))


def _tell(name: str, found: Sequence[Source], left_out: Counter[str]) -> None:
    parts = [f"{count:,} {what}" for what, count in sorted(left_out.items()) if count]
    print(f"--input {name}: {len(found):,} files" + (f", left out: {', '.join(parts)}" if parts else ""))


def _remote(name: str, left_out: Counter[str]) -> list[Source]:
    try:
        system, path = fsspec().core.url_to_fs(name)
        if glob.has_magic(path):
            found = sorted(system.glob(path))
        elif system.isdir(path):
            entries = system.find(path)
            shown = [entry for entry in entries if "/." not in entry.removeprefix(path)]
            left_out["hidden"] += len(entries) - len(shown)
            found = _choose(name, shown, left_out)
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
    except Exception as error:  # an unknown protocol, a missing package, or what a store's own package raises
        if str(error).startswith("--input"):
            raise
        raise ValueError(f"--input {name}: {error or type(error).__name__}") from error
    return sources


def _check_kind(path: str) -> None:
    if not known_suffix(path):
        raise ValueError(f"--input {path}: expected one of {KNOWN}")

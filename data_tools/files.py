"""Files that are whole or absent: write beside, sync, rename."""

import fcntl
import hashlib
import json
import os
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def append_suffix(prefix: Path, suffix: str) -> Path:
    """PREFIX and a suffix, whatever dots the prefix holds."""
    return prefix.with_name(f"{prefix.name}{suffix}")


def sync(path: Path) -> None:
    """Have the content of a written file on disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def rename(path: Path, target: Path) -> None:
    """Put a synced file in its place, for good."""
    path.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the temporary file ``path`` for this process, which a kill releases.

    Raises:
        ValueError: another process holds it.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{path}: another run is writing it; wait for that one, or stop it") from error
        except OSError:
            pass  # some cluster file systems have no locks: there nothing guards
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds ``lock`` on ``path``; False where a file system has no locks."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
    return False


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all; of several writers at once the last one wins."""
    temporary = append_suffix(path, f".{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32(path: Path, start: int = 0, end: int | None = None) -> int:
    """CRC-32 of the bytes ``start`` to ``end`` of a file, of all of it by default."""
    value = 0
    with open(path, "rb") as file:
        file.seek(start)
        while part := file.read(1 << 24 if end is None else min(1 << 24, end - start)):
            value, start = zlib.crc32(part, value), start + len(part)
    return value

"""Files that are there whole or not at all, and their digests."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """:func:`write_text` of ``content`` as JSON."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of ``text`` as UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` in one step (write, sync, rename): an interruption leaves the old file or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # several ranks may write at once
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: remove it")
    return content


def sha256(*files: Path) -> str:
    """Hex digest of the files' bytes, one file after another."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()

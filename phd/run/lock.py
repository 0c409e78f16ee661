"""One job at a time writes to a run folder."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

LOCK_FILE = "lock"


def holder() -> dict[str, Any]:
    """A text that helps to find this process."""
    job = {key: os.environ[f"SLURM_{key.upper()}"] for key in ("job_id", "job_name") if _in_slurm(key)}
    return {"host": socket.gethostname(), "pid": os.getpid(), **job, "since": time.strftime("%F %T")}


def _in_slurm(key: str) -> bool:
    return f"SLURM_{key.upper()}" in os.environ


class RunLock:
    """The right to write to a run folder, for as long as the process lives.

    A POSIX lock: the system drops it with the process, however that ends, and shares it between the nodes
    of a file system that supports locks (NFS 4, Lustre mounted with flock). Forked processes do not hold it.
    """

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            ValueError: another process holds it; says which.
        """
        self._file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError | PermissionError):  # how POSIX says "it is taken"
                self._file.close()
                raise
            self._file.seek(0)
            by = _words(self._file.read())
            self._file.close()
            raise ValueError(
                f"{folder} is being written by another job{by}: wait for it, stop it, or take another folder"
            ) from error
        self._file.truncate(0)
        self._file.write(json.dumps(holder()))
        self._file.flush()

    def release(self) -> None:
        """Release it before the process ends."""
        self._file.truncate(0)
        self._file.close()


def _words(text: str) -> str:
    try:
        who = json.loads(text)
        return " (" + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in who.items()) + ")"
    except (ValueError, AttributeError):
        return ""

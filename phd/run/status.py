"""How the last start of a run ended, on disk, for the script that decides whether to queue the job again."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from phd.run.files import read_json, write_json
from phd.run.lock import RunLock, holder

STATUS_FILE = "status.json"
STARTS_FILE = "starts.jsonl"
TRACKER = "latest_checkpointed_iteration.txt"  # Megatron's, in the folder of the checkpoints

FINISHED, FAILED, UNFINISHED = 0, 1, os.EX_TEMPFAIL
"""Exit codes of `phd status`: nothing left to do; do not start it again as it is; start it again."""

KEYS = ("state", "reason", "train_iters", "from", "fruitless_starts", "checkpoints")
"""What `phd status` reads of status.json."""

FRUITLESS_STARTS = 3
"""After this many starts in a row without a new checkpoint a run counts as failed, however they ended."""


def newest_checkpoint(checkpoints: Path) -> int:
    """The iteration that Megatron's tracker file names; 0 where there is none."""
    try:
        return int((checkpoints / TRACKER).read_text())
    except (FileNotFoundError, ValueError):
        return 0


class RunStatus:
    """status.json of a run folder: running, interrupted, finished or failed, and why."""

    def __init__(self, folder: Path, checkpoints: Path) -> None:
        self.path = folder / STATUS_FILE
        self.checkpoints = checkpoints

    def started(self, train_iters: int | None, command: str) -> None:
        """This process begins; also a line in starts.jsonl."""
        before = read_json(self.path)
        checkpoint = newest_checkpoint(self.checkpoints)
        # After `failed` a person has looked into it; after `finished` there is nothing left to do.
        goes_on = before.get("state") in ("running", "interrupted") and before.get("from") == checkpoint
        fruitless = before.get("fruitless_starts", 0) + 1 if goes_on else 0
        content: dict[str, Any] = {
            "state": "running",
            "reason": None,
            "train_iters": train_iters or before.get("train_iters"),  # unknown yet with --train-samples
            "from": checkpoint,
            "fruitless_starts": fruitless,
            "checkpoints": self._checkpoints_from_here(),
            "start": holder(),
        }
        write_json(self.path, content)
        write_line(
            self.path.with_name(STARTS_FILE), {**content["start"], "from": checkpoint, "command": command}
        )

    def _checkpoints_from_here(self) -> str:
        """Relative paths for what is in the run folder, which may be moved, or mounted elsewhere."""
        folder, checkpoints = self.path.parent.resolve(), self.checkpoints.resolve()
        inside = checkpoints.is_relative_to(folder)
        return str(checkpoints.relative_to(folder) if inside else checkpoints)

    def counted(self, train_iters: int) -> None:
        """Megatron has counted the iterations that --train-samples make."""
        write_json(self.path, read_json(self.path) | {"train_iters": train_iters})

    def ended(self, state: str, reason: str | None = None) -> None:
        """interrupted, finished, or failed in a way that starting again would not mend. The first failure
        that a rank reports stays.
        """
        content = read_json(self.path)
        if content.get("state") != "failed":
            write_json(self.path, content | {"state": state, "reason": reason})

    def died(self, reason: str) -> None:
        """An error that may go away: the state stays `running`, as it does for a process that was killed."""
        content = read_json(self.path)
        if content.get("state") == "running" and not content.get("reason"):
            write_json(self.path, content | {"reason": reason})


def refused(folder: Path, reason: str) -> None:
    """A start was refused before it took the folder, and the next one will be too: record that, unless
    another job holds the folder, or the run was never started.
    """
    path = folder / STATUS_FILE
    with contextlib.suppress(OSError, ValueError):
        content = read_json(path)
        if content:
            lock = RunLock(folder)
            write_json(path, content | {"state": "failed", "reason": reason})
            lock.release()


def write_line(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line and sync it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record | {"time": time.time()}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def judge(folder: Path) -> tuple[int, str]:
    """Exit code (FINISHED, FAILED or UNFINISHED) and one line on a run whose processes have ended.

    Raises:
        FileNotFoundError: no run has been started there.
        ValueError: its status file is damaged.
    """
    content = read_json(folder / STATUS_FILE)
    if not content:
        raise FileNotFoundError(
            f"no {STATUS_FILE} in {folder}: no run with --run-dir {folder} has started yet"
        )
    lacking = [key for key in KEYS if key not in content]
    if lacking:
        raise ValueError(f"{folder / STATUS_FILE} lacks {', '.join(lacking)}: remove it")
    checkpoint = newest_checkpoint(folder / content["checkpoints"])
    at = f"checkpoint at iteration {checkpoint}"
    if content["train_iters"]:
        at += f" of {content['train_iters']}"
    why = f": {content['reason']}" if content["reason"] else ""
    match content["state"]:
        case "finished":
            return FINISHED, f"finished; {at}"
        case "failed":
            return FAILED, f"failed{why}; {at}"
        case "interrupted":
            state, ended = "interrupted", "interrupted"
        case _:
            state, ended = "running, or died", "died"
    if checkpoint != content["from"]:
        return UNFINISHED, f"{state}{why}; {at}; start it again to continue"
    tries = content["fruitless_starts"] + 1
    if tries < FRUITLESS_STARTS:
        return UNFINISHED, f"{state}{why}; no new checkpoint since its start; {at}"
    return FAILED, f"{ended} {tries} times in a row without a new checkpoint{why}; {at}; look into its log"

"""The progress of all tools: bytes read, speed, time left. On stderr, so that stdout holds results.

On a terminal a bar; in a log a line now and then, which nothing overwrites.
"""

import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

LINE_SECONDS = 60.0
"""Between two lines of a log at most."""
LINE_SHARE, FEWEST_SECONDS = 0.05, 10.0
"""A line comes earlier when so much more is done, but not sooner than that."""


class _Lines(Progress):
    """Progress as lines for a log."""

    def __init__(self, *columns: Any, **options: Any) -> None:
        super().__init__(*columns, disable=True, **options)
        self._last: dict[TaskID, tuple[float, float]] = {}  # when, and with how much done

    def start(self) -> None:
        """There is no display to start."""

    def stop(self) -> None:
        """Nor one to end, with an empty line."""

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        task, now = self._tasks[task_id], self.get_time()
        when, done = self._last.setdefault(task_id, (now, 0.0))
        further = task.completed - done >= LINE_SHARE * (task.total or 0) and task.completed > done
        if now - when >= LINE_SECONDS or (further and now - when >= FEWEST_SECONDS):
            self._last[task_id] = (now, task.completed)
            print(_line(task), file=sys.stderr, flush=True)


def _line(task: Task) -> str:
    columns = (TaskProgressColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    shown = [str(column.render(task)) for column in columns]
    note = f", {note}" if (note := task.fields.get("note")) else ""
    return f"{task.description}: {shown[0].strip()}, {shown[1]}, {shown[2]} left{note}"


def byte_progress(console: Console | None = None) -> Progress:
    """A bar, or lines, whose tasks count bytes; the task's field ``note`` is shown at the end.

    Args:
        console: stderr by default; a terminal or not.
    """
    console = console or Console(stderr=True)
    kind = Progress if console.is_terminal else _Lines
    return kind(
        TextColumn("{task.description}"),
        TaskProgressColumn(),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=8)),
        TransferSpeedColumn(),
        BarColumn(bar_width=10),
        # What is too long for the terminal is cut off here, never the time left.
        TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=console,
        expand=True,
    )

"""The file of finished cells: a line of JSON each, below one that says what plan they are of."""

import json
import os
from pathlib import Path
from typing import Any


class Cells:
    """Cells that are in ``path``, which is made where it is missing. A last line that was cut off is removed.

    Raises:
        ValueError: its cells are of another plan, or it is no file of cells.
    """

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path = path
        self.done: list[dict[str, Any]] = []
        header = json.dumps({"plan": plan})
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        if (lines and lines[0] != header) or (not lines and not header.startswith(text)):
            raise ValueError(f"--cells {path} does not begin with the plan of this benchmark: move it away")
        try:
            self.done = [json.loads(line) for line in lines[1:]]
        except ValueError as error:
            raise ValueError(f"--cells {path} has a line that is not JSON ({error}): move it away") from error
        if lines:
            os.truncate(path, len("\n".join([*lines, ""]).encode()))
        else:
            path.write_text(header + "\n", encoding="utf-8")

    def add(self, cell: dict[str, Any]) -> None:
        self.done.append(cell)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
            file.flush()
            os.fsync(file.fileno())

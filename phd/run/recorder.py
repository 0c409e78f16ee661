"""The writer of metrics.jsonl: a line for each training iteration and each validation, and none twice.

It is the record; TensorBoard and W&B are views of it. A run that continues from a checkpoint cuts off what
was recorded after that checkpoint, and then writes the same lines again; W&B, which takes no line back, is
sent only what it has not got.
"""

import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from phd.run.files import read_json, write_json, write_text
from phd.run.record import METRICS_FILE, Line, line_text, read_lines

WANDB_FILE = "wandb.json"


class Recorder:
    """Collects the scalars that Megatron writes to TensorBoard and makes lines of them.

    It takes the place of Megatron's TensorBoard writer, and hands on to the real one what it gets.
    """

    def __init__(self, folder: Path, tensorboard: Any = None, wandb: Any = None) -> None:
        """``tensorboard`` (a SummaryWriter) and ``wandb`` (the module, initialised) may be absent."""
        self._path = folder / METRICS_FILE
        self._wandb_path = folder / WANDB_FILE
        self._tensorboard, self._wandb = tensorboard, wandb
        self._scalars: dict[str, float] = {}
        self._written: set[tuple[str, int]] = set()
        self._sent = 0
        self._file: Any = None

    def resume(self, iteration: int) -> Line | None:
        """Keep what was recorded up to ``iteration``, the checkpoint's; cut off the rest. Without a
        checkpoint (0) the record that is there is put aside as a whole. Returns the last line that is kept.

        Raises:
            ValueError: the record that is there is damaged.
        """
        lines = list(read_lines(self._path))
        kept = [line for line in lines if line["iteration"] <= iteration]
        unsent = self._unsent(lines, kept) if self._wandb is not None else []
        if lines and not iteration:
            self._put_aside(lines)
        write_text(self._path, "".join(line_text(line) for line in kept))
        self._written = {(line["kind"], line["iteration"]) for line in kept}
        trained = {step for kind, step in self._written if kind == "train"}
        if missing := iteration - len(trained):
            print(f"> {self._path}: {missing} of the {iteration} iterations before are not recorded")
        self._file = self._path.open("a", encoding="utf-8")
        self._scalars.clear()
        for line in unsent:
            self._send(line)
        return kept[-1] if kept else None

    def _put_aside(self, lines: list[Line]) -> None:
        number = 1
        while (place := self._path.with_stem(f"{self._path.stem}-{number}")).exists():
            number += 1
        self._path.rename(place)
        trained = max(line["iteration"] for line in lines)
        print(
            f"> {self._path} held {trained} iterations and there is no checkpoint to go on from: see {place}"
        )

    def _unsent(self, lines: list[Line], kept: list[Line]) -> list[Line]:
        """Write down how many lines W&B has; returns the kept lines that it does not have."""
        about = read_json(self._wandb_path)
        newest = max((line["iteration"] for line in lines), default=0)
        # Before the cut: a second kill must still know what had been sent.
        self._sent = reached = max(about.get("sent", 0), newest)
        if "lost" in about:
            self._sent = about.pop("lost") - 1
            reached = max([self._sent, *(line["iteration"] for line in kept)])
        write_json(self._wandb_path, about | {"sent": reached})
        return [line for line in kept if line["iteration"] > self._sent]

    def add_scalar(self, tag: str, value: Any, step: int) -> None:
        """Megatron's call. Every loss comes twice, the second time against samples: one goes into a line."""
        self._show("add_scalar", tag, value, step)
        if not tag.endswith(" vs samples"):
            self._scalars[tag] = float(value)

    def forget(self) -> None:
        """Make no line of the scalars since the last one."""
        self._scalars.clear()

    def write(self, kind: str, iteration: int, tokens: int, flops: float, **more: Any) -> None:
        """Make a line of the scalars since the last one, unless this kind and iteration has one."""
        scalars, self._scalars = self._scalars, {}
        if kind == "test":  # Megatron logs it as another validation
            scalars = {name.replace("validation", "test"): value for name, value in scalars.items()}
        if (kind, iteration) in self._written:
            return
        about = {"kind": kind, "iteration": iteration, "tokens": tokens, "flops": flops, "time": time.time()}
        numbers = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        line = {**about, **numbers, **more}
        self._file.write(line_text(line))
        self._file.flush()  # a killed process loses nothing then; sync() is for a lost machine
        self._written.add((kind, iteration))
        if iteration > self._sent:
            self._send(line)

    def _send(self, line: Line) -> None:
        """To W&B. It is a view: when its own process has died (which a host short of memory may kill), the
        training goes on without, and the next start sends what it missed.
        """
        if self._wandb is None:
            return
        iteration = line["iteration"]
        try:
            shown = {
                name: self._shown(value)
                for name, value in line.items()
                if name not in ("kind", "iteration", "time") and value != []
            }
            self._wandb.log(shown, step=iteration)
        except Exception as error:
            self._wandb = None
            write_json(self._wandb_path, read_json(self._wandb_path) | {"lost": iteration})
            print(
                f"> WARNING: W&B gets nothing from iteration {iteration} on ({type(error).__name__}: "
                f"{error}). The training goes on, and the next start sends it from {METRICS_FILE}"
            )

    def sync(self) -> None:
        """Before a checkpoint claims that these iterations are done."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def _shown(self, value: Any) -> Any:
        """A value of a line in W&B's form: rows become a table, null a number that is not finite."""
        if isinstance(value, list):
            return self._wandb.Table(columns=list(value[0]), data=[list(row.values()) for row in value])
        return math.nan if value is None else value

    def __getattr__(self, name: str) -> Any:
        """The rest of a SummaryWriter; without one, calls that do nothing."""
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._show, name)

    def _show(self, call: str, *args: Any, **kwargs: Any) -> Any:
        """Call TensorBoard. It is a view, too: the training goes on without when it cannot write."""
        if self._tensorboard is None:
            return None
        try:
            return getattr(self._tensorboard, call)(*args, **kwargs)
        except OSError as error:
            self._tensorboard = None
            print(
                f"> WARNING: TensorBoard gets nothing from here on ({error}). The training goes on, and "
                f"{METRICS_FILE} has all of it"
            )

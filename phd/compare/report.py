"""Put runs side by side: group the seeds of a variant, pair them with the baseline's, print and save."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from phd.compare.logs import Run


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, in the order of the seeds."""

    label: str
    runs: tuple[Run, ...]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs by variant and length of training; the group of the first run, the baseline, comes first.

    Raises:
        ValueError: the runs did not train on the same batches, or two differ in nothing.
    """
    for key, flag in (("seq_length", "--seq-length"), ("global_batch_size", "--global-batch-size")):
        for run in runs:
            if getattr(run, key) != getattr(runs[0], key):
                raise ValueError(
                    f"{runs[0].path} was trained with {flag} {getattr(runs[0], key)} and {run.path} with "
                    f"{getattr(run, key)}; compare runs on the same batches"
                )
    members: dict[tuple[str, int], dict[int, Run]] = {}
    for run in runs:
        seeds = members.setdefault((run.name, run.train_iters), {})
        if run.seed in seeds:
            raise ValueError(
                f"{seeds[run.seed].path} and {run.path} are both {run.name} with --seed {run.seed} and "
                f"--train-iters {run.train_iters}; leave one out"
            )
        seeds[run.seed] = run
    names = [name for name, _ in members]
    return [
        Group(
            label=name if names.count(name) == 1 else f"{name}, {train_iters} iterations",
            runs=tuple(seeds[seed] for seed in sorted(seeds)),
        )
        for (name, train_iters), seeds in members.items()
    ]


def difference(run: Run, baseline: Group) -> float | None:
    """Final validation loss of ``run`` minus that of the baseline with the same seed; None without one."""
    loss = run.final_validation_loss
    for other in baseline.runs:
        if other.seed == run.seed and loss is not None and other.final_validation_loss is not None:
            return loss - other.final_validation_loss
    return None


def summarize(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One record per run, and after the runs of a group with several seeds one with their means.

    Losses are in nats per token; ``difference`` is paired by seed (negative: better than the baseline).
    """
    records: list[dict[str, Any]] = []
    for group in groups:
        rows: list[dict[str, Any]] = [
            {
                "label": group.label,
                "seed": run.seed,
                "path": str(run.path),
                "parameters": run.parameters,
                "tokens": run.tokens,
                "train_loss": run.final_train_loss,
                "validation_loss": run.final_validation_loss,
                "difference": None if group is groups[0] else difference(run, groups[0]),
                "training_flops": run.training_flops,
                "tokens_per_second": run.tokens_per_second,
            }
            for run in group.runs
        ]
        records += rows
        if len(rows) > 1:
            mean: dict[str, Any] = {"label": group.label, "seed": "mean"}
            for key in ("tokens", "train_loss", "validation_loss", "difference", "training_flops"):
                values = [row[key] for row in rows]
                mean[key] = None if None in values else fmean(values)
            records.append(mean)
    return records


def print_table(records: Sequence[dict[str, Any]], console: Console) -> None:
    """Print :func:`summarize`'s records; what a run lacks is a dash."""
    table = Table(
        caption="Losses in nats per token; difference to the first run by seed (negative is better)"
    )
    table.add_column("run")
    columns = {
        "seed": "{}",
        "tokens": "{:,.0f}",
        "train_loss": "{:.4f}",
        "validation_loss": "{:.4f}",
        "difference": "{:+.4f}",
        "training_flops": "{:.3g}",
        "tokens_per_second": "{:,.0f}",
    }
    for name in columns:
        table.add_column(name.replace("_", " ").replace("tokens per second", "tokens/s"), justify="right")
    for record in records:
        values = {name: record.get(name) for name in columns}
        cells = ["-" if value is None else columns[name].format(value) for name, value in values.items()]
        table.add_row(record["label"], *cells)
    console.print(table)


def write_json(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Save the records, whole or not at all."""
    write_atomically(path, json.dumps(records, indent=1).encode() + b"\n")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` in one step, so that an interruption leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

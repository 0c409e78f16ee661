"""What bf16 does on this processor to the speed and the loss of the study's trainings.

    python -m benchmarks.evidence.precision        # ten minutes; writes benchmarks/evidence/precision.json

Each cell trains ITERATIONS on one core in fp32 and in bf16, in turns, ROUNDS times: the median milliseconds
of an iteration, its first ten aside, and the mean training loss of the last ten. Processors with `amx_bf16`
or `avx512_bf16` multiply matrices in bf16 faster; without, torch widens the numbers first.
"""

import re
import shutil
import statistics
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from benchmarks.attention import machine
from benchmarks.evidence.run import KEPT, WORK, Study, on_trunk_text, prepare_text
from benchmarks.evidence.study import PHD, TRUNKS, VANILLA
from phd.run.files import write_json
from phd.run.record import read_lines

ITERATIONS, ROUNDS = 60, 3
CELLS = [(trunk, variant) for trunk in TRUNKS if trunk.name in ("0.2M", "1M") for variant in (VANILLA, PHD)]
PRECISIONS = {"fp32": [], "bf16": ["--bf16"]}


def main() -> None:
    prepare_text()
    study = Study(until=None)
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    losses: dict[tuple[str, str, str], float] = {}
    for _ in range(ROUNDS):
        for trunk, variant in CELLS:
            for precision, more in PRECISIONS.items():
                folder = WORK / "precision" / f"{trunk.name}-{variant}-{precision}"
                shutil.rmtree(folder, ignore_errors=True)
                flags = ["--variant", variant, "--train-iters", str(ITERATIONS), *more]
                study.train(on_trunk_text(trunk, folder, *flags), folder)
                lines = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
                seconds = [after["time"] - before["time"] for before, after in pairwise(lines)]
                key = trunk.name, variant, precision
                times[key] += seconds[10:]
                losses[key] = statistics.mean(line["lm loss"] for line in lines[-10:])
    write_json(
        KEPT / "precision.json",
        {
            "command": "python -m benchmarks.evidence.precision",
            "machine": machine() | {"bf16": _bf16_instructions()},
            "cells": [
                {
                    "trunk": name,
                    "variant": variant,
                    "precision": precision,
                    "milliseconds": 1000 * statistics.median(seconds),
                    "loss": losses[name, variant, precision],
                }
                for (name, variant, precision), seconds in times.items()
            ],
        },
    )


def _bf16_instructions() -> list[str]:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return sorted({*re.findall(r"\b(amx_bf16|avx512_bf16)\b", text)})


if __name__ == "__main__":
    main()

"""Where theory says what copies should and should not do: parity, Match3 and hops, six models, five seeds.

    make probes                              # all cells that are missing, then probes.json and the table
    python benchmarks/probes.py --table      # the table of what there is
    python benchmarks/probes.py --only hop --seeds 1 --cells FILE --output FILE    # a part, elsewhere

benchmarks/probe/plan.py says what is measured and how. A finished cell is a line of probes.jsonl and not run
again: interrupt it and run it again. Each cell has one core.
"""

import sys
from pathlib import Path

# The folder of this file holds a tokenize.py, and the standard library must go on finding its own.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import multiprocessing
import os
import shlex
import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime

import torch

from benchmarks.attention import machine
from benchmarks.gpu_check import state_of_the_code
from benchmarks.probe.cells import Cells
from benchmarks.probe.plan import ARMS, PROBES, SEEDS, as_json, run_cell
from benchmarks.probe.table import markdown, summarize
from phd.run.files import write_json

RESULTS = Path(__file__).with_suffix(".json")


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    try:
        cells = Cells(args.cells, as_json())
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    if not args.table:
        done = {(cell["task"], cell["arm"], cell["seed"]) for cell in cells.done}
        # seed by seed: whoever stops early has whole seeds
        asked = [(task, arm, seed) for seed in args.seeds for task in args.only for arm in args.arms]
        run([key for key in asked if key not in done], cells, args.jobs)
    summary = summarize(cells.done)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **state_of_the_code(),
        "machine": machine(),
        "plan": as_json(),
        "seconds_of_all_cells": sum(cell["seconds"] for cell in cells.done),
        "tasks": summary,
    }
    write_json(args.output, report)
    print(markdown(summary))
    print(f"Written to {args.output}")
    return 0


def run(keys: list[tuple[str, str, int]], cells: Cells, jobs: int) -> None:
    """The cells of ``keys``, ``jobs`` side by side with a thread each; what interrupts this ends them.

    Raises:
        RuntimeError: cells failed; the others have been run.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(1,))
    failures: list[BaseException] = []
    try:
        futures = {pool.submit(run_cell, *key): key for key in keys}
        for count, future in enumerate(as_completed(futures), 1):
            task, arm, seed = futures[future]
            place = f"{time.strftime('%H:%M:%S')} {count} of {len(keys)}: {task}, {arm}, seed {seed}"
            if (error := future.exception()) is not None:
                failures.append(error)
                print(f"{place}: {error!r}", file=sys.stderr)
                continue
            cell = {"task": task, "arm": arm, "seed": seed, **future.result()}
            cells.add(cell)
            print(f"{place}: accuracy {cell['accuracy']:.4f} in {cell['seconds']:.0f} s", file=sys.stderr)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(keys)} cells failed: run it again for those"
        ) from failures[0]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PROBES, default=[*PROBES], metavar="TASK")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=[*SEEDS], metavar="SEED")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells side by side; one core each")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--cells", type=Path, default=RESULTS.with_suffix(".jsonl"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    return args


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise SystemExit(main())

"""Attention of an old checkout beside a new one's: forward and backward of one layer, in turns.

    python benchmarks/attention_versions.py OLD NEW              # a minute; writes attention_versions.json
    python benchmarks/attention_versions.py OLD NEW --rounds 60  # a closer look

Three processes with fixed threads: one of OLD, another of OLD, one of NEW. In a round each makes the same
call twice, in one order and then back (OLD NEW OLD-again OLD-again NEW OLD), so that a steady drift of the
machine cancels; which comes first changes from round to round. NEW / OLD is the median of the ratios within a
round. OLD-again / OLD stands beside it: what two processes of the same code differ by. One sample, 8 query
heads, 2 key/value heads, d = 64, fp32; PHD-CSWA-K-16-32, sparse layers with blocks of 64.
"""

import sys
from pathlib import Path

# The folder of this file holds a tokenize.py, and the standard library must go on finding its own. A worker,
# started with -P, has its checkout there.
if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import gc
import importlib
import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

HEADS, GROUPS, DIM = 8, 2, 64
WINDOW, CHUNK = 16, 32
RESULTS = Path(__file__).with_suffix(".json")


class Case(NamedTuple):
    """One layer, with a length at which a call takes 20 to 100 ms on one core."""

    length: int
    copies: int = 1
    blocks: tuple[int, int, int, int | None] | None = None
    """Of a sparse layer: positions in a block, first and most recent blocks that are kept, stride."""
    documents: int = 1
    """So many of one length, packed."""


SINK, BLOCK_SPARSE = (64, 1, 4, None), (64, 0, 1, 8)
CASES = {
    "K=1": Case(896),
    "K=2": Case(640, 2),
    "K=3": Case(448, 3),
    "K=5": Case(320, 5),
    "packed K=2": Case(1024, 2, documents=8),
    "sink K=1": Case(1024, 1, SINK),
    "sink K=2": Case(768, 2, SINK),
    "block-sparse K=1": Case(1024, 1, BLOCK_SPARSE),
    "block-sparse K=2": Case(768, 2, BLOCK_SPARSE),
}
VERSIONS = ("old", "old again", "new")


def attention_of(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention of the checkout that this process imports. Its layout is made here, as a model makes it once
    for all layers.
    """
    attention: Any = importlib.import_module("phd.attention")
    starts = None
    if case.documents > 1:
        each = case.length // case.documents
        starts = torch.arange(case.length)[None] // each * each
    if hasattr(attention, "phd_attention"):
        rule = {"copies": case.copies, "window": WINDOW, "chunk": CHUNK, "document_starts": starts}
        make_pattern = importlib.import_module("phd.attention.pattern").Pattern
        pattern = None if case.blocks is None else make_pattern(*case.blocks)
        layout = attention.phd_layout(case.length, **rule)
        return partial(attention.phd_attention, **rule, pattern=pattern, layout=layout)
    rules: Any = importlib.import_module("phd.rules.rule")
    kinds: Any = importlib.import_module("phd.rules.keys")
    keys = kinds.Full() if case.blocks is None else kinds.Blocks(*case.blocks)
    layer = rules.AttentionRule(rules.Copies(case.copies, WINDOW, CHUNK), keys)
    return partial(
        attention.attention, layout=attention.Layout.of(layer, case.length, document_starts=starts)
    )


def call_of(case: Case) -> Callable[[], object]:
    """Forward and backward on random inputs, which are made here."""
    attention = attention_of(case)
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (
        torch.randn(case.length, case.copies, heads, DIM, generator=generator)
        for heads in (HEADS, GROUPS, GROUPS, HEADS)
    )
    inputs = [x.requires_grad_() for x in (query, key, value)]
    return lambda: torch.autograd.grad(attention(*inputs), inputs, grad)


def serve(threads: int) -> None:
    """Answer the names of cases with the seconds of one call, the first after two calls to warm up."""
    torch.set_num_threads(threads)
    print(importlib.import_module("phd.attention").__file__, flush=True)
    calls: dict[str, Callable[[], object]] = {}
    gc.disable()
    for name in map(str.strip, sys.stdin):
        if name not in calls:
            calls[name] = call_of(CASES[name])
            calls[name](), calls[name]()
            gc.collect()
            gc.freeze()
        gc.collect()
        begin = time.perf_counter()
        calls[name]()
        print(time.perf_counter() - begin, flush=True)


@contextmanager
def worker(checkout: Path, threads: int) -> Iterator[Callable[[str], float]]:
    """A process of ``checkout``, as a function from the name of a case to the seconds of one call.

    Raises:
        RuntimeError: it has imported another checkout, or ended; what it says goes to stderr.
    """
    command = [sys.executable, "-P", __file__, "--serve", "--threads", str(threads)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        to, answers = process.stdin, process.stdout

        def seconds(name: str) -> float:
            print(name, file=to, flush=True)
            if not (answer := answers.readline()):
                raise RuntimeError(f"{checkout} has no answer for {name}")
            return float(answer)

        where = answers.readline().strip()
        if not Path(where).is_relative_to(checkout):
            raise RuntimeError(f"the worker of {checkout} has imported {where!r}")
        yield seconds
        to.close()  # its end


def turns(number: int) -> list[str]:
    """The order of a round: there and back, each version first in a third of the rounds."""
    first = number % len(VERSIONS)
    order = [*VERSIONS[first:], *VERSIONS[:first]]
    return [*order, *reversed(order)]


def measure(workers: dict[str, Callable[[str], float]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """case -> version -> seconds of each round, the sum of its two calls. Rounds go over all cases, so that
    what slows the machine down for a while does not meet one of them alone.
    """
    times = {name: {version: [0.0] * rounds for version in VERSIONS} for name in CASES}
    for name in CASES:
        for version in VERSIONS:
            workers[version](name)
    for number in range(rounds):
        print(time.strftime("%H:%M:%S"), f"round {number + 1} of {rounds}", file=sys.stderr)
        for name in CASES:
            for version in turns(number):
                times[name][version][number] += workers[version](name)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Seconds of a case's rounds, with their ratios to OLD's."""
    result: dict[str, Any] = {"seconds": times, "old_call_median": statistics.median(times["old"]) / 2}
    for version, name in (("new", "new_to_old"), ("old again", "noise")):
        ratios = [other / old for other, old in zip(times[version], times["old"], strict=True)]
        result[name] = statistics.median(ratios)
        result[f"{name}_quartiles"] = statistics.quantiles(ratios)[::2] if len(ratios) > 1 else ratios * 2
    return result


def table(results: dict[str, dict[str, Any]]) -> Table:
    view = Table(title="Forward + backward, median ratio of the rounds (quartiles)")
    for column in ("", "s", "OLD, ms", "NEW / OLD", "noise, OLD again / OLD"):
        view.add_column(column, justify="right")
    for name, result in results.items():
        ratios = (
            "{:.3f} ({:.3f} to {:.3f})".format(result[ratio], *result[f"{ratio}_quartiles"])
            for ratio in ("new_to_old", "noise")
        )
        view.add_row(name, str(CASES[name].length), f"{1e3 * result['old_call_median']:.1f}", *ratios)
    return view


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="OLD NEW", help="two checkouts")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--threads", type=int, default=1, help="of each process; one of them computes at a time"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve(options.threads)
    if len(options.checkouts) != 2:
        parser.error("name two checkouts: OLD NEW")
    from benchmarks.attention import machine, write  # in a worker it would be another checkout's

    old, new = (checkout.resolve() for checkout in options.checkouts)
    report: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": options.threads,
        "cases": {name: case._asdict() for name, case in CASES.items()},
    }
    with ExitStack() as stack:
        workers = {
            version: stack.enter_context(worker(checkout, options.threads))
            for version, checkout in zip(VERSIONS, (old, old, new), strict=True)
        }
        report["results"] = {name: summary(times) for name, times in measure(workers, options.rounds).items()}
    Console(width=120).print(table(report["results"]))
    write(options.output, report)
    print(f"Written to {options.output}")


if __name__ == "__main__":
    main()

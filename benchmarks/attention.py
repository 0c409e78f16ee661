"""Time and memory of PHD attention, forward and backward, beside the ways it could have been computed.

    python benchmarks/attention.py          # all sizes, about half an hour on 2 cores; writes attention.json
    python benchmarks/attention.py --quick  # a minute, prints only

Methods: vanilla causal flash attention over the s tokens; PHD-CSWA-K-16-32 by the flash backend; the same by
scaled_dot_product_attention with the dense mask (built beforehand, not timed); naive repetition, one causal
flash call over K*s tokens. Vanilla is the faster of two calls, grouped heads and repeated heads. One sample,
8 query heads, 2 key/value heads, d = 64, fp32. K times vanilla is the floor of PHD: K times as many queries
over the same keys.

All methods of one size are interleaved in one process with fixed threads; times are medians. PHD over its
floor is the median of the ratios within one round, which a slow drift of the machine does not move; the ratio
of the minima stands beside it. Peak memory is the growth of a fresh process's resident set over its inputs
(the mask is no input); Linux only.

Legend: s positions, K copies, h query heads, g key/value heads, d head dimension.
"""

import sys

# The folder of this file holds a tokenize.py, and the standard library must go on finding its own.
if __name__ == "__main__":
    sys.path.pop(0)

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from phd.attention import Layout, attention
from phd.attention.reference import dense_mask
from phd.rules.copies import Copies
from phd.rules.rule import AttentionRule

HEADS, GROUPS, DIM = 8, 2, 64
WINDOW, CHUNK = 16, 32
METHODS = ("vanilla", "vanilla, heads repeated", "phd", "dense mask", "naive")
RESULTS = Path(__file__).with_suffix(".json")
SLOW_SECONDS = 10.0
"""A method that takes longer in its warm-up is measured three times only."""
ROUND_SECONDS, MOST_ROUNDS = 10.0, 40
"""Short sizes get more rounds, up to so many in so much time."""
CLEAR_PEAK = Path("/proc/self/clear_refs")


def attention_call(method: str, length: int, copies: int) -> Callable[[], None]:
    """One forward and backward of ``method`` on random inputs, which are made here."""
    rows = 1 if method.startswith("vanilla") else copies
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (
        torch.randn(length, rows, heads, DIM, generator=generator) for heads in (HEADS, GROUPS, GROUPS, HEADS)
    )
    inputs = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
    phd = AttentionRule(Copies(copies, WINDOW, CHUNK))
    naive = AttentionRule(Copies(copies, cached=copies > 1))
    mask: Tensor | None = None

    def vanilla(*, grouped: bool) -> Tensor:
        # [s, 1, h, d] -> [1, h, s, d]
        q, k, v = (x.permute(1, 2, 0, 3) for x in inputs)
        if not grouped:
            k, v = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (k, v))
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return context.permute(2, 0, 1, 3)

    def dense() -> Tensor:
        nonlocal mask
        if mask is None:
            visible = dense_mask(phd, length).reshape(length * copies, -1)
            mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        # [s, K, h, d] -> [1, h, s*K, d]
        q, k, v = (x.flatten(0, 1).transpose(0, 1)[None] for x in inputs)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return context[0].transpose(0, 1).unflatten(0, (length, copies))

    forward = {
        "vanilla": lambda: vanilla(grouped=True),
        "vanilla, heads repeated": lambda: vanilla(grouped=False),
        "phd": lambda: attention(*inputs, Layout.of(phd, length)),
        "dense mask": dense,
        "naive": lambda: attention(*inputs, Layout.of(naive, length)),
    }[method]

    def call() -> None:
        torch.autograd.grad(forward(), inputs, grad)

    return call


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_memory(method: str, length: int, copies: int, threads: int) -> int | None:
    """Bytes one call needs above its inputs, None where the system does not tell. Wants a fresh process."""
    if not CLEAR_PEAK.exists():
        return None
    torch.set_num_threads(threads)
    attention_call(method, 64, copies)()  # the libraries' own buffers
    call = attention_call(method, length, copies)
    CLEAR_PEAK.write_text("5")
    before = peak_resident()
    call()
    return peak_resident() - before


def peak_resident() -> int:
    """High-water mark of this process's resident set, bytes (proc(5))."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def measure(length: int, copies: int, rounds: int, threads: int, pool: ProcessPoolExecutor) -> dict:
    """All methods of one size, interleaved.

    Returns:
        s, K, and for each method seconds (all of them), median and peak bytes, or the reason it was skipped.
    """
    methods: dict[str, dict] = {}
    calls = {}
    # the mask in fp32, and the bool tensors it is made from
    dense_bytes = 8 * (length * copies) ** 2
    memory = physical_memory()
    for method in METHODS:
        if method == "dense mask" and dense_bytes > memory / 2:
            methods[method] = {"skipped": f"mask needs {dense_bytes / 1e9:.1f} GB of {memory / 1e9:.1f} GB"}
            continue
        tell(f"s={length} K={copies}: {method}, memory and warm-up")
        peak = pool.submit(peak_memory, method, length, copies, threads).result()
        calls[method] = attention_call(method, length, copies)
        warm_up = seconds(calls[method])
        turns = max(rounds, min(MOST_ROUNDS, int(ROUND_SECONDS / warm_up)))
        methods[method] = {
            "peak_bytes": peak,
            "rounds": min(rounds, 3) if warm_up > SLOW_SECONDS else turns,
            "seconds": [],
        }
    most = max(methods[method]["rounds"] for method in calls)
    for turn in range(most):
        tell(f"s={length} K={copies}: round {turn + 1} of {most}")
        for method, call in calls.items():
            if turn < methods[method]["rounds"]:
                methods[method]["seconds"].append(seconds(call))
    for method in calls:
        methods[method]["median"] = statistics.median(methods[method]["seconds"])
        methods[method]["minimum"] = min(methods[method]["seconds"])
    return {"s": length, "K": copies, "methods": methods}


def physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def tell(progress: str) -> None:
    print(time.strftime("%H:%M:%S"), progress, file=sys.stderr, flush=True)


def add_ratios(result: dict) -> None:
    """Medians as multiples of the faster vanilla call, and PHD over its floor, K times vanilla."""
    methods = result["methods"]
    vanilla = min((methods[name] for name in METHODS[:2]), key=lambda method: method["median"])
    result["vanilla_median"] = vanilla["median"]
    for method in methods.values():
        if "median" in method:
            method["times_vanilla"] = method["median"] / vanilla["median"]
    floor = [seconds * result["K"] for seconds in vanilla["seconds"]]
    rounds = [ours / least for ours, least in zip(methods["phd"]["seconds"], floor, strict=False)]
    result["phd_times_floor"] = statistics.median(rounds)
    result["phd_times_floor_rounds"] = rounds
    result["phd_times_floor_of_minima"] = methods["phd"]["minimum"] / result["K"] / vanilla["minimum"]


def machine() -> dict:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": physical_memory(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cell(method: dict) -> str:
    return method["skipped"] if "skipped" in method else f"{method['times_vanilla']:.2f} {megabytes(method)}"


def megabytes(method: dict) -> str:
    return "" if method["peak_bytes"] is None else f"({method['peak_bytes'] / 1e6:.0f})"


def table(results: list[dict]) -> Table:
    """Time as multiples of vanilla, memory in MB."""
    view = Table(title="Forward + backward, in multiples of vanilla (peak MB)")
    for column in (
        "s",
        "K",
        "vanilla",
        "PHD",
        "PHD / (K x vanilla)",
        "of minima",
        "dense mask",
        "naive",
        "dense / PHD",
    ):
        view.add_column(column, justify="right")
    for result in results:
        methods = result["methods"]
        dense = methods["dense mask"].get("median")
        view.add_row(
            str(result["s"]),
            str(result["K"]),
            f"{result['vanilla_median'] * 1e3:.0f} ms {megabytes(methods['vanilla'])}",
            cell(methods["phd"]),
            f"{result['phd_times_floor']:.3f}",
            f"{result['phd_times_floor_of_minima']:.3f}",
            cell(methods["dense mask"]),
            cell(methods["naive"]),
            f"{dense / methods['phd']['median']:.2f}" if dense else "",
        )
    return view


def write(path: Path, report: dict) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time and memory of PHD attention, forward and backward, on the CPU."
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192], metavar="S")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 2, 3, 5], metavar="K")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each method")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument(
        "--output", type=Path, help=f"default: {RESULTS.name} beside this file; none with --quick"
    )
    parser.add_argument("--quick", action="store_true", help="s = 1024, K = 1 and 2, three rounds")
    options = parser.parse_args(arguments)
    if options.quick:
        options.lengths, options.copies, options.rounds = [1024], [1, 2], 3
    elif options.output is None:
        options.output = RESULTS
    for name in ("lengths", "copies", "rounds", "threads"):
        given = getattr(options, name)
        if min(given if isinstance(given, list) else [given]) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    report: dict = {
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": options.threads,
        "shape": {"batch": 1, "heads": HEADS, "groups": GROUPS, "dim": DIM, "dtype": "float32"},
        "variant": {"window": WINDOW, "chunk": CHUNK},
        "complete": False,
        "results": [],
    }
    sizes = [(length, copies) for length in options.lengths for copies in options.copies]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for length, copies in sizes:
            result = measure(length, copies, options.rounds, options.threads, pool)
            add_ratios(result)
            report["results"].append(result)
            report["complete"] = len(report["results"]) == len(sizes)
            if options.output:
                write(options.output, report)
    Console(width=120).print(table(report["results"]))
    if options.output:
        print(f"Written to {options.output}")


if __name__ == "__main__":
    main()

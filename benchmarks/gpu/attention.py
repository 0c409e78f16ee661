"""PHD attention in bf16, forward and backward, beside vanilla, FlexAttention and a dense mask.

Vanilla is causal attention over the s tokens by every kernel at hand; PHD is PHD-CSWA-K-16-32 by the flash
backend. All calls of one size take turns in one process. One sample, a model width of 2048, a quarter as many
key/value heads. PHD over its floor, K times the fastest vanilla kernel, is the median of the ratios within a
round. ``phd_kernel`` is what PHD's unmasked part ran on.

Legend: s positions, K copies, h query heads, g key/value heads, d head dimension.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.kernels import dense_mask_attention, vanilla_kernels
from benchmarks.gpu.piece import Result, keep, main, say, target, time_left
from benchmarks.gpu.timing import device_of, peak_bytes
from benchmarks.peers.flex import flex_attention_of
from benchmarks.timing import in_turns
from phd.attention import Layout, attention
from phd.attention.kernels import cuda
from phd.rules.copies import Copies
from phd.rules.rule import AttentionRule

WIDTH = 2048
WINDOW, CHUNK = 16, 32
LONGEST_DENSE = 4096
"""Positions up to which the dense mask is tried: it has (K s)^2 elements."""
type Call = Callable[[], object]


def run(dry: bool) -> Result:
    """PHD attention in bf16, forward and backward, beside vanilla, FlexAttention and a dense mask."""
    device = device_of(dry)
    sizes = [(64, 64, 2)] if dry else [(s, d, k) for s in (4096, 16384) for d in (64, 128) for k in (2, 3, 5)]
    rounds = 2 if dry else 7
    rows: list[Result] = [{"s": s, "d": d, "K": k} for s, d, k in sizes]
    # the many compilations of FlexAttention last, since they take most of the time, but for the first size's:
    # there is one number of it however the time ends
    order = [(beside_vanilla, rows[0]), (beside_flex, rows[0])]
    order += [(measure, row) for measure in (beside_vanilla, beside_flex) for row in rows[1:]]
    for measure, row in order:
        if time_left() < LEAST_SECONDS[measure]:
            row.setdefault("skipped", []).append(f"{measure.__name__}: no time left")
            continue
        say(f"{measure.__name__}: s={row['s']} d={row['d']} K={row['K']}")
        measure(row, rounds, device)
        keep(sizes=rows)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    keep(targets=targets(rows))
    if failed := [row["methods"]["phd"]["refused"] for row in rows if refused(row, "phd")]:
        raise RuntimeError(f"PHD attention did not run at {len(failed)} sizes: {failed[0]}")
    return {}


def beside_vanilla(row: Result, rounds: int, device: torch.device) -> None:
    """Measure the vanilla kernels, PHD and the dense mask at the size of ``row``; adds to it."""
    length, copies = row["s"], row["K"]
    inputs, grad = random_inputs(row, 1, device)
    calls = {
        f"vanilla, {name}": backward_of(partial(kernel, *inputs), inputs, grad)
        for name, kernel in vanilla_kernels(row["d"], inputs, device).items()
    }
    calls["phd"] = call_of(phd_attention, row, device)
    row["phd_kernel"] = phd_kernel(row, device)
    if length <= LONGEST_DENSE:
        inputs, grad = random_inputs(row, copies, device)
        dense = dense_mask_attention(rule_of(row), length, device)
        calls["dense mask"] = backward_of(partial(dense, *inputs), inputs, grad)
    row["methods"] = methods = measured(calls, rounds, device)
    for name, method in methods.items():
        if "seconds" in method:
            rule = AttentionRule() if name.startswith("vanilla") else rule_of(row)
            pairs = rule.visible_pairs(length)
            # a product with keys and one with values; backward counts twice forward, as in phd.rules.costs
            method["tflops"] = 3 * 4 * WIDTH * pairs / method["median"] / 1e12
    vanilla = [name for name in methods if name.startswith("vanilla") and "seconds" in methods[name]]
    if not vanilla or refused(row, "phd"):
        return
    row["best_vanilla"] = best = min(vanilla, key=lambda name: methods[name]["median"])
    row["phd_times_floor"] = ratio(methods["phd"], methods[best]) / copies
    if "seconds" in methods.get("dense mask", {}):
        row["dense_over_phd"] = ratio(methods["dense mask"], methods["phd"])


def beside_flex(row: Result, rounds: int, device: torch.device) -> None:
    """Measure PHD again, and FlexAttention compiled for this size alone."""
    torch.compiler.reset()  # or the second size would be compiled for any size
    calls = {
        "flash": call_of(phd_attention, row, device),
        "flex": call_of(flex_attention_of, row, device),
    }
    row["backends"] = methods = measured(calls, rounds, device)
    if all("seconds" in method for method in methods.values()):
        row["flex_over_phd"] = ratio(methods["flex"], methods["flash"])


LEAST_SECONDS = {beside_vanilla: 5.0, beside_flex: 30.0}
"""A size is left out where less is left: FlexAttention's forward and backward take most of it to compile."""


def rule_of(row: Result) -> AttentionRule:
    return AttentionRule(Copies(row["K"], WINDOW, CHUNK))


def phd_attention(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
    return attention(query, key, value, Layout.of(rule, len(query), device=query.device))


def call_of(function: Callable[..., Tensor], row: Result, device: torch.device) -> Call:
    inputs, grad = random_inputs(row, row["K"], device)
    return backward_of(partial(function, *inputs, rule_of(row)), inputs, grad)


def phd_kernel(row: Result, device: torch.device) -> str:
    """What causal attention over the originals runs on, where the copies are more heads."""
    if device.type != "cuda":
        return "torch's for the CPU"
    heads = WIDTH // row["d"]
    # [s, K*h, d] -> [1, K*h, s, d]
    query, key = (
        torch.empty(row["s"], row["K"] * n, row["d"], dtype=torch.bfloat16, device=device)
        .transpose(0, 1)
        .unsqueeze(0)
        for n in (heads, heads // 4)
    )
    return cuda.kernel_of(query, key, key, causal=True)


def random_inputs(row: Result, copies: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Query [s, K, h, d], key and value [s, K, g, d], and the gradient of the output, as the query."""
    generator = torch.Generator(device).manual_seed(0)
    heads = WIDTH // row["d"]
    *inputs, grad = (
        torch.randn(row["s"], copies, n, row["d"], generator=generator, device=device).to(torch.bfloat16)
        for n in (heads, heads // 4, heads // 4, heads)
    )
    return [x.requires_grad_() for x in inputs], grad


def backward_of(forward: Callable[[], Tensor], inputs: list[Tensor], grad: Tensor) -> Call:
    """Forward and backward."""
    return lambda: torch.autograd.grad(forward(), inputs, grad)


def measured(calls: dict[str, Call], rounds: int, device: torch.device) -> Result:
    """Of each call seconds of every round, their median and the memory it needs; or why it does not run."""
    methods: Result = {}
    for name, call in calls.items():
        try:
            call()
            methods[name] = {"peak_bytes": peak_bytes(call, device)}
        except Exception as error:  # a kernel's refusals are of many kinds: memory, compilers, shapes
            methods[name] = {"refused": f"{type(error).__name__}: {error}"[:300]}
    running = {name: call for name, call in calls.items() if "refused" not in methods[name]}
    for name, seconds in in_turns(running, rounds, device).items():
        methods[name] |= {"seconds": seconds, "median": statistics.median(seconds)}
    return methods


def refused(row: Result, name: str) -> bool:
    return "refused" in row.get("methods", {}).get(name, {})


def ratio(method: Result, other: Result) -> float:
    """Median over the rounds."""
    return statistics.median(a / b for a, b in zip(method["seconds"], other["seconds"], strict=True))


def targets(rows: list[Result]) -> list[Result]:
    """The worst of all sizes."""
    found = []
    if floors := [row["phd_times_floor"] for row in rows if "phd_times_floor" in row]:
        found.append(target("attention: PHD / (K x best vanilla kernel)", max(floors), at_most=1.10))
    for name, least in (("flex", 1.3), ("dense", 5.0)):
        if speeds := [row[f"{name}_over_phd"] for row in rows if f"{name}_over_phd" in row]:
            found.append(target(f"attention: {name} / PHD", min(speeds), at_least=least))
    return found


if __name__ == "__main__":
    raise SystemExit(main(run))

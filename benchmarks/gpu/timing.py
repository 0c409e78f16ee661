"""Times and memory of calls on one device: CUDA events there, the clock on a CPU; calls take turns."""

import time
from collections.abc import Callable, Mapping

import torch

SHORTEST = 0.02
"""Seconds: shorter calls are measured several at a time, back to back."""


def device_of(dry: bool) -> torch.device:
    """The CPU for a dry run, else the GPU.

    Raises:
        RuntimeError: there is none.
    """
    if not dry and not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    return torch.device("cpu" if dry else "cuda")


def in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call in each round; what slows the machine down for a while slows all alike.

    Each call runs three times before; the third tells how many go into one measurement.
    """
    repeats = {}
    for name, call in calls.items():
        for _ in range(2):
            call()
        repeats[name] = max(1, min(20, round(SHORTEST / seconds(call, device))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device, repeats[name]))
    return times


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Time of one of ``repeats`` calls in a row, from start to end on the device."""
    if device.type == "cpu":
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - begin) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3 / repeats


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Device memory that a call needs above what is allocated before it; None on a CPU."""
    if device.type == "cpu":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before

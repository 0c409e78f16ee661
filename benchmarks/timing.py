"""Times of calls on one device: CUDA events there, the clock on a CPU; calls take turns."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

SHORTEST = 0.02
"""Seconds: shorter calls are measured several at a time, back to back."""


@contextmanager
def steady(device: torch.device) -> Iterator[None]:
    """Measure within: ``device`` is the current one, which graphs and events go by, and scaled dot product
    attention does not take cuDNN, which on Hopper plans half a second for every new length of the keys: a
    growing cache has one at each step. What asks for cuDNN by name still gets it.
    """
    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(allowed)


def in_turns[Name](
    calls: Mapping[Name, Callable[[], object]],
    rounds: int,
    device: torch.device,
    repeats: int | None = None,
) -> dict[Name, list[float]]:
    """Seconds of each call in each round; what slows the machine down for a while slows all alike.

    Args:
        repeats: calls in one measurement, after one call before all; None finds out, of the third call, how
            many last ``SHORTEST``.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    with no_collection():
        counts = {}
        for name, call in calls.items():
            call()
            counts[name] = repeats or _enough(call, device)
        for _ in range(rounds):
            for name, call in calls.items():
                gc.collect()
                times[name].append(seconds(call, device, counts[name]))
    return times


def _enough(call: Callable[[], object], device: torch.device) -> int:
    call()
    return max(1, min(20, round(SHORTEST / seconds(call, device))))


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's collector does not start within, in the middle of a measurement, and what there is now is none
    of its business: a call of ``gc.collect`` then looks at new objects alone, not at all of torch for 0.2 s.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Time of one of ``repeats`` calls in a row, from start to end on the device."""
    if device.type == "cpu":
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - begin) / repeats
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def kernel_seconds(call: Callable[[], object], device: torch.device) -> float:
    """What the kernels and copies of a call take on a GPU, the gaps between their launches left out."""
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize(device)
    return device_seconds(profile.key_averages())


def device_seconds(events: Iterable[Any]) -> float:
    """Sum of the profiler's events on a device; those of the host carry the same kernels again."""
    return sum(
        event.self_device_time_total
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ) / 1e6  # fmt: skip

"""The device of a piece, and the memory of a call; how calls are timed stands in benchmarks/timing.py."""

from collections.abc import Callable

import torch


def device_of(dry: bool) -> torch.device:
    """The CPU for a dry run, else the GPU.

    Raises:
        RuntimeError: there is none.
    """
    if not dry and not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    return torch.device("cpu" if dry else "cuda")


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

"""When a collective has timed out: which ranks are silent."""

import time
import traceback
from pathlib import Path

import torch

REPORT_SECONDS = 10
"""How long ranks whose collective timed out wait for each other's messages before they end."""


def is_timeout(error: BaseException) -> bool:
    """Whether a collective waited in vain (gloo: 'Timed out waiting', NCCL: 'Watchdog caught collective')."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("timed out" in text or "timeout" in text)


def who_is_silent(error: BaseException, rank: int, world_size: int) -> str:
    """After a timeout: tell the other ranks, through the store that torchrun keeps, where this one waited;
    name those that have told nothing.
    """
    waited = _collective(error)
    message = f"rank {rank} waited in vain in {waited}"
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        store.set(f"phd/waited/{rank}", waited)
        deadline = time.monotonic() + REPORT_SECONDS
        others = set(range(world_size)) - {rank}
        while others and time.monotonic() < deadline:
            others = {other for other in others if not store.check([f"phd/waited/{other}"])}
            time.sleep(0.2)
    except (RuntimeError, ValueError):
        return message + " (and the store of the process group is gone: the node of rank 0 may be lost)"
    if not others:
        return message + "; every rank says so: the network may be at fault"
    names = ", ".join(map(str, sorted(others)))
    return f"{message}; no word from rank(s) {names}: hung or dead"


def _collective(error: BaseException) -> str:
    """The collective and where it was called from, by the frames of the error."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [number for number, frame in enumerate(frames) if "torch/distributed" in frame.filename]
    if not inside:
        return f"{frames[-1].name} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
    names = [frames[number].name for number in inside if frames[number].name != "wrapper"]
    caller = frames[inside[0] - 1]
    return f"{names[0] if names else 'a collective'} called at {Path(caller.filename).name}:{caller.lineno}"

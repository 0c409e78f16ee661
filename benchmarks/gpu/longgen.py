"""benchmarks/longgen.py in bf16: a training step, reading a prompt and decoding of LongGen's hybrids."""

import time

from benchmarks.gpu.piece import Result, keep, main, say, target, time_left
from benchmarks.gpu.timing import device_of
from benchmarks.longgen import PAPER, measure

LONGER = 20.0
"""A length four times as long takes at most so many times the time: its attention takes 16 times."""


def run(dry: bool) -> Result:
    """benchmarks/longgen.py in bf16: a training step, reading a prompt and decoding of LongGen's hybrids."""
    device = device_of(dry)
    lengths, rounds, steps = ([64], 1, 1) if dry else ([32768, 131072], 3, 16)
    result: Result = {"paper": PAPER, "lengths": {}}
    needed = 0.0
    for length in lengths:
        if time_left() < needed:
            result["lengths"][str(length)] = {"skipped": f"could take {needed:.0f} s"}
            break
        say(f"{length} tokens")
        if device.type == "cuda":
            measure(length, 1, 2, device)  # kernels are chosen and loaded in the first round
        begin = time.monotonic()
        result["lengths"][str(length)] = rows = measure(length, rounds, steps, device)
        result["targets"] = [
            target(
                f"longgen-sink, {length} tokens, {what}: full / hybrid",
                rows["longgen-sink"][f"{what}_times_as_fast"],
                at_least=times,
            )
            for what, times in PAPER.items()
        ]
        needed = LONGER * (time.monotonic() - begin)
        keep(**result)
    return result


if __name__ == "__main__":
    raise SystemExit(main(run))

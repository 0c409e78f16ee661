"""What the machine reaches: a large bf16 matrix product, and copying memory. All shares are of these."""

import statistics

import torch

from benchmarks.gpu.piece import Result, main
from benchmarks.gpu.timing import device_of
from benchmarks.timing import in_turns


def run(dry: bool) -> Result:
    """What the machine reaches: a large bf16 matrix product, and copying memory."""
    device = device_of(dry)
    size, count = (256, 1 << 20) if dry else (8192, 1 << 31)
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(count, device=device, dtype=torch.bfloat16)
    copy = torch.empty_like(source)
    calls = {"product": lambda: torch.mm(a, b, out=product), "copy": lambda: copy.copy_(source)}
    median = {
        name: statistics.median(times) for name, times in in_turns(calls, 3 if dry else 15, device).items()
    }
    return {
        "size": size,
        "bf16_tflops": 2 * size**3 / median["product"] / 1e12,
        "copied_bytes": source.nbytes,
        # read and written
        "gb_per_second": 2 * source.nbytes / median["copy"] / 1e9,
    }


if __name__ == "__main__":
    raise SystemExit(main(run))

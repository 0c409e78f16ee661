"""What a device can do, and how much of it a run uses."""

from typing import Literal

# Dense peaks (no structured sparsity) in FLOP/s of one device with bf16 or fp16 inputs and fp32 sums, from
# NVIDIA's data sheets. Matched against the device's name, the first hit wins, so longer names come first.
_BF16_PEAKS = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("GH200", 989.4e12),
    ("H200 NVL", 835.5e12),
    ("H200", 989.4e12),
    ("H100 PCIe", 756.5e12),
    ("H100 NVL", 835.5e12),
    ("H100", 989.4e12),
    ("A100", 312e12),
    ("L40S", 362e12),
)


def peak_flops(device_name: str, precision: Literal["bf16", "fp16", "fp8"] = "bf16") -> float | None:
    """Dense peak of one device in FLOP/s, or None where it is not known (a CPU, an unlisted GPU).

    Args:
        device_name: as ``torch.cuda.get_device_name()`` gives it, for example "NVIDIA H100 80GB HBM3".
    """
    for name, peak in _BF16_PEAKS:
        if name in device_name:
            if precision != "fp8":
                return peak
            # Ampere has no FP8; on every later device of the table it doubles the rate.
            return None if name == "A100" else 2 * peak
    return None


def mfu(*, tokens_per_second: float, flops_per_token: float, peak_flops: float) -> float:
    """Model FLOPs utilisation as a fraction: FLOPs really needed over what the devices could do.

    Args:
        tokens_per_second: original tokens, of all devices together.
        peak_flops: FLOP/s of all devices together.

    Raises:
        ValueError: ``peak_flops`` is not positive.
    """
    if peak_flops <= 0:
        raise ValueError(f"peak_flops must be positive, got {peak_flops}")
    return tokens_per_second * flops_per_token / peak_flops

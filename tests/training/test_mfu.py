import pytest

from phd.training.mfu import mfu, peak_flops


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756.5e12),
        ("NVIDIA H200", "fp8", 2 * 989.4e12),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp8", None),
        ("NVIDIA GB200", "bf16", 2.5e15),
        ("NVIDIA GH200 480GB", "bf16", 989.4e12),
        ("cpu", "bf16", None),
    ],
)
def test_peak_flops(device, precision, peak):
    assert peak_flops(device, precision) == peak


def test_mfu():
    assert mfu(tokens_per_second=2e4, flops_per_token=1e10, peak_flops=1e15) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="peak_flops must be positive"):
        mfu(tokens_per_second=1.0, flops_per_token=1.0, peak_flops=0)

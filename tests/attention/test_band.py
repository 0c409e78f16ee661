import pytest
import torch

from phd.attention import band
from phd.attention.kernels import cuda
from tests.attention.calls import attend, rule_of


@pytest.mark.parametrize("copies", [2, 3, 5])
@pytest.mark.parametrize("window", [1, 6, 40])
def test_slices_do_not_show(monkeypatch, copies, window):
    """A sequence of many slices, the last one of an incomplete block, gives what one slice gives."""
    length = 101
    query, key, value, grad = (
        torch.randn(length, 2 * copies, n, 4, dtype=torch.float64) for n in (4, 2, 2, 4)
    )
    results = []
    for elements in (1 << 30, 1, 4000):
        monkeypatch.setattr(band, "_SLICE_ELEMENTS", elements)
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        out = attend(*inputs, rule_of(copies, window))
        results.append([out, *torch.autograd.grad(out, inputs, grad)])
    for sliced in results[1:]:
        for result, whole in zip(sliced, results[0], strict=True):
            torch.testing.assert_close(result, whole, rtol=1e-13, atol=1e-13)


def test_plain_matrix_products_do_as_well(monkeypatch):
    """The band as a GPU computes it, where the flash kernel takes no mask; the last block is incomplete."""
    inputs = [torch.randn(45, 6, n, 4, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]
    grad = torch.randn(45, 6, 4, 4, dtype=torch.float64)

    def results():
        out = attend(*inputs, rule_of(3, 6, 16))
        return [out, *torch.autograd.grad(out, inputs, grad)]

    expected = results()
    monkeypatch.setattr(band, "attention_forward", cuda.masked_forward)
    monkeypatch.setattr(band, "attention_backward", cuda.masked_backward)
    for result, reference in zip(results(), expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-13, atol=1e-13)

"""What the fast path promises besides its numbers: memory, odd strides, no silent second derivative."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from phd.attention import full
from tests.attention.calls import attend, rule_of


def allocations(length, rule, **arguments):
    """Bytes that one forward and backward allocates, inside kernels too: largest block, sum of all blocks."""
    heads, groups, dim = 2, 1, 8
    shapes = [(length, rule.copies.count, n, dim) for n in (heads, groups, groups, heads)]
    *inputs, grad = (torch.randn(shape, requires_grad=True) for shape in shapes)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.autograd.grad(attend(*inputs, rule, **arguments), inputs, grad)
    sizes = [event.self_cpu_memory_usage for event in profiler.events()]
    return max(sizes), sum(size for size in sizes if size > 0)


@pytest.mark.parametrize(
    ("window", "chunk"), [(1, None), (16, 32), (16, None)], ids=["PHD", "PHD-CSWA", "PHD-SWA"]
)
def test_nothing_quadratic_is_allocated(window, chunk):
    length = 2000
    largest, total = allocations(length, rule_of(3, window, chunk))
    assert largest < length**2 / 2  # bytes: half of a bool mask between positions
    _, total_of_half = allocations(length // 2, rule_of(3, window, chunk))
    assert total < 2.2 * total_of_half


def test_naive_repetition_makes_no_mask():
    largest, _ = allocations(2000, rule_of("naive-3"))
    assert largest < 2000**2 / 2


def test_the_dense_mask_would_be_noticed():
    largest, _ = allocations(200, rule_of(3, 16, 32), backend="reference")
    assert largest >= (3 * 200) ** 2


def test_strided_inputs_and_gradients():
    """Slices of one projection, a layout with gaps in its last dimension, the expanded gradient of a sum."""
    projection = torch.randn(23, 4, 8, 6, dtype=torch.float64)
    gaps = torch.randn(23, 4, 6, 8, dtype=torch.float64).transpose(2, 3)
    expected = None
    for query, key, value in (
        (projection[:, :, :4], projection[:, :, 4:6], gaps[:, :, :2]),
        (projection[:, :, :4].contiguous(), projection[:, :, 4:6].contiguous(), gaps[:, :, :2].contiguous()),
    ):
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        out = attend(*inputs, rule_of(2, 4, 8))
        results = [out, *torch.autograd.grad(out.sum(), inputs)]
        expected = expected or results
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)], ids=["heads-first", "rows-first"])
def test_any_layout_of_the_kernels_output(order, monkeypatch):
    """cuDNN gives its output the query's order of dimensions; the band then writes into it."""
    inputs = [torch.randn(23, 4, n, 6, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]
    kernel = full.attention_forward

    def results():
        out = attend(*inputs, rule_of(2, 4, 8))
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    def forward(*arguments, **settings):
        out, lse = kernel(*arguments, **settings)
        return out.permute(order).contiguous().permute(order), lse

    expected = results()
    monkeypatch.setattr(full, "attention_forward", forward)
    torch.testing.assert_close(results(), expected)


def test_a_compiled_training_step():
    """torch.compile calls the attention outside of its graphs."""
    inputs = [torch.randn(23, 4, n, 6, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]

    def step(*inputs):
        return attend(*(x * 2 for x in inputs), rule_of(2, 4, 8)).square()

    expected = step(*inputs)
    torch._dynamo.reset()
    out = torch.compile(step, backend="aot_eager")(*inputs)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), inputs) for x in (out, expected)))


def test_second_derivative_is_refused():
    inputs = [torch.randn(9, 2, 2, 4, requires_grad=True) for _ in range(3)]
    out = attend(*inputs, rule_of(2, 4))
    (gradient,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()

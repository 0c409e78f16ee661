"""The contract of ``phd.attention.kernels`` for each implementation, on the CPU as far as it goes."""

import pytest
import torch

from phd.attention import phd_attention
from phd.attention.kernels import cpu, cuda
from tests.attention.test_attention import starts_of

MASKED = {"cpu": (cpu.forward, cpu.backward), "cuda": (cuda.masked_forward, cuda.masked_backward)}


def random_inputs(heads=6, groups=2, rows=7, keys=12, dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, heads, rows, dim), (3, groups, keys, dim), (3, groups, keys, dim), (3, heads, rows, dim)]
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


def softmax_attention(query, key, value, mask, scale):
    """Output and log-sum-exp in plain torch."""
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
    scores = query @ key.mT * scale + mask
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def random_mask(rows=7, keys=12):
    visible = torch.rand(3, 1, rows, keys, generator=torch.Generator().manual_seed(1)) < 0.6
    visible[..., 0] = True
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill_(~visible, -torch.inf)


@pytest.mark.parametrize("kernel", MASKED)
def test_masked(kernel):
    forward, backward = MASKED[kernel]
    query, key, value, grad = random_inputs()
    mask = random_mask()
    inputs = [x.requires_grad_() for x in (query, key, value)]
    expected_out, expected_lse = softmax_attention(*inputs, mask, 0.3)
    expected = torch.autograd.grad(expected_out, inputs, grad)
    with torch.no_grad():
        out, lse = forward(query, key, value, 0.3, mask)
        gradients = backward(grad, query, key, value, out, lse, 0.3, mask)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse, expected_lse)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("kernel", MASKED)
def test_shares_of_a_larger_softmax(kernel):
    """Backward over two parts of the keys, each with out and lse of the whole, adds up to the whole."""
    _, backward = MASKED[kernel]
    query, key, value, grad = random_inputs()
    mask = random_mask()
    inputs = [x.requires_grad_() for x in (query, key, value)]
    out, lse = softmax_attention(*inputs, mask, 0.3)
    expected = torch.autograd.grad(out, inputs, grad)
    halves = [slice(0, 5), slice(5, 12)]
    with torch.no_grad():
        shares = [
            backward(
                grad, query, key[:, :, half], value[:, :, half], out, lse, 0.3, mask[..., half].contiguous()
            )
            for half in halves
        ]
    (query_0, key_0, value_0), (query_1, key_1, value_1) = shares
    torch.testing.assert_close(query_0 + query_1, expected[0])
    torch.testing.assert_close(torch.cat([key_0, key_1], dim=2), expected[1])
    torch.testing.assert_close(torch.cat([value_0, value_1], dim=2), expected[2])


def test_causal_on_the_cpu():
    query, key, value, grad = random_inputs(rows=12)
    mask = torch.full((12, 12), -torch.inf, dtype=torch.float64).triu(1)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    expected_out, expected_lse = softmax_attention(*inputs, mask, 0.3)
    expected = torch.autograd.grad(expected_out, inputs, grad)
    with torch.no_grad():
        out, lse = cpu.forward(query, key, value, 0.3, None)
        gradients = cpu.backward(grad, query, key, value, out, lse, 0.3, None)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse, expected_lse)
    torch.testing.assert_close(gradients, expected)


def test_cuda_operators_take_our_arguments():
    """Shapes only, from torch's own meta implementations: no GPU runs here."""
    query, key, value, grad = (
        x.to("meta") for x in random_inputs(rows=16, keys=16, dim=8, dtype=torch.bfloat16)
    )
    out, lse = cuda.forward(query, key, value, 0.3, None)
    gradients = cuda.backward(grad, query, key, value, out, lse, 0.3, None)
    assert out.shape == query.shape
    assert (lse.shape, lse.dtype) == (query.shape[:3], torch.float32)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]


def test_cuda_flash_refuses_fp32():
    query, key, value, _ = random_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match="takes fp16 and bf16, got torch.float32"):
        cuda.forward(query, key, value, 0.3, None)


@pytest.mark.gpu
@pytest.mark.parametrize("last_copy_only", [False, True], ids=["all", "last"])
@pytest.mark.parametrize("documents", [None, starts_of((1, 90, 42), (133,))], ids=["one", "packed"])
@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("backend", ["flash", "flex"])
def test_phd_attention_on_cuda(backend, copies, documents, last_copy_only):
    """The flash call with Triton's band, and FlexAttention compiled; outputs and gradients."""
    generator = torch.Generator().manual_seed(0)
    *inputs, grad = (
        torch.randn(133, 2 * copies, n, 64, generator=generator).to("cuda", torch.bfloat16)
        for n in (8, 2, 2, 8)
    )
    if last_copy_only:
        grad = grad[:, ::copies]
    rule = {
        "copies": copies,
        "window": 16,
        "chunk": 32,
        "document_starts": documents,
        "last_copy_only": last_copy_only,
    }
    results = {}
    for name, dtype in ((backend, torch.bfloat16), ("reference", torch.float64)):
        qkv = [x.to(dtype).requires_grad_() for x in inputs]
        out = phd_attention(*qkv, backend=name, **rule)
        results[name] = [out, *torch.autograd.grad(out, qkv, grad.to(dtype))]
    for result, reference in zip(*results.values(), strict=True):
        assert (result.double() - reference).abs().max() < 2e-2 * reference.abs().max()

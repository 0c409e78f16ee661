"""What ``phd.attention.kernels`` promises, for each implementation, as far as a CPU can test it."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from phd.attention.kernels import cpu, cuda, packed_backward, packed_forward

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


def test_masked_in_half_precision_sums_in_full():
    """Products are rounded to bf16, but neither their exponentials' sum nor its logarithm, which other parts
    of the same softmax are weighed by.
    """
    query, key, value, _ = (x.bfloat16() for x in random_inputs(keys=2000, dim=64))
    mask = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
    out, lse = cuda.masked_forward(query, key, value, 0.3, mask)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    expected_out, expected_lse = softmax_attention(query.double(), key.double(), value.double(), 0, 0.3)
    largest = (query.double() @ key.double().repeat_interleave(3, dim=1).mT * 0.3).abs().max()
    assert (lse - expected_lse).abs().max() < largest * 2**-9
    torch.testing.assert_close(out.double(), expected_out, rtol=0, atol=0.02)


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


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_cuda_operators_take_our_arguments(kernel, groups, causal, monkeypatch):
    """Shapes, dtypes and layouts only, from torch's own meta implementations: no GPU runs here. Query and
    keys are views, as the slices of Megatron's fused projection and of the copies are.
    """
    monkeypatch.setattr(cuda, "kernel_of", lambda *inputs: kernel)
    rows, keys = 16, 16 if causal else 24
    with FakeTensorMode():
        fused = torch.empty(3, 24, 6 + 2 * groups, 8, dtype=torch.bfloat16, device="cuda").transpose(1, 2)
        query, key, value = fused[:, :, :keys].split([6, groups, groups], dim=1)
        query = query[:, :, :rows]
        out, lse = cuda.forward(query, key, value, 0.3, None, causal)
        # a slice of a whole sequence's, and the gradient as autograd may give it
        whole_lse = torch.empty(3, rows, 6, device="cuda").transpose(1, 2)
        grad = torch.empty(3, rows, 6, 8, dtype=torch.bfloat16, device="cuda").transpose(1, 2)
        gradients = cuda.backward(grad, query, key, value, out, whole_lse, 0.3, None, causal)
    assert not query.is_contiguous() and not key.is_contiguous()
    assert (out.shape, out.dtype, out.device) == (query.shape, torch.bfloat16, query.device)
    assert out.stride(-1) == 1
    assert (lse.shape, lse.dtype) == (query.shape[:3], torch.float32)
    for gradient, tensor in zip(gradients, (query, key, value), strict=True):
        assert (gradient.shape, gradient.dtype) == (tensor.shape, torch.bfloat16)


def test_packed_cuda_operators_take_our_arguments():
    """As above. One call for all documents, whatever their lengths."""
    with FakeTensorMode():
        query, grad = (torch.empty(50, 6, 8, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        fused = torch.empty(50, 4, 8, dtype=torch.bfloat16, device="cuda")
        key, value = fused.split(2, dim=1)
        out, lse = cuda.packed_forward(query, key, value, (30, 1, 19), 0.3)
        gradients = cuda.packed_backward(grad, query, key, value, out, lse, (30, 1, 19), 0.3)
    assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((50, 6), torch.float32)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]


def test_packed_sequences_are_told_by_where_they_end():
    ends = cuda._ends((30, 1, 19), torch.device("cpu"))
    assert (ends.dtype, ends.tolist()) == (torch.int32, [0, 30, 31, 50])


def test_packed_sequences_on_the_cpu():
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (
        torch.randn(50, heads, 8, dtype=torch.float64, generator=generator) for heads in (6, 2, 2, 6)
    )
    lengths = (30, 1, 19)
    out, lse = packed_forward(query, key, value, lengths, 0.3)
    gradients = packed_backward(grad, query, key, value, out, lse, lengths, 0.3)
    document = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    seen = (document[:, None] == document) & torch.ones(50, 50, dtype=torch.bool).tril()
    given = [x.requires_grad_() for x in (query, key, value)]
    scores = torch.einsum("sgrd,tgd->grst", query.unflatten(1, (2, 3)), key) * 0.3
    scores = scores.masked_fill(~seen, -torch.inf)
    expected = torch.einsum("grst,tgd->sgrd", scores.softmax(-1), value).flatten(1, 2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, scores.logsumexp(-1).permute(2, 0, 1).flatten(1))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, given, grad))


@pytest.mark.parametrize(
    ("machine", "rows", "kernel"),
    [
        ({"capability": (9, 0)}, 256, "cudnn"),
        ({"capability": (10, 0)}, 256, "cudnn"),
        ({"capability": (8, 0)}, 256, "flash"),
        ({"capability": (9, 0)}, 200, "flash"),  # a document's length: cuDNN would compile for each
        ({"capability": (9, 0), "takes": False}, 256, "flash"),
        ({"available": False}, 256, "flash"),
    ],
    ids=["hopper", "blackwell", "ampere", "any-length", "not-taken", "no-driver"],
)
def test_kernel_by_device(machine, rows, kernel, monkeypatch):
    def takes(asked):
        assert asked.enable_gqa and asked.is_causal and asked.query.shape == query.shape
        return machine.get("takes", True)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine.get("available", True))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: machine["capability"])
    names = ("query", "key", "value", "mask", "dropout", "is_causal", "enable_gqa")
    monkeypatch.setattr(
        cuda, "SDPAParams", lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))
    )
    monkeypatch.setattr(cuda, "can_use_cudnn_attention", takes)
    query, key = torch.empty(1, 4, rows, 64), torch.empty(1, 2, rows, 64)
    assert cuda.kernel_of(query, key, key, causal=True) == kernel


def test_cuda_flash_refuses_fp32():
    query, key, value, _ = random_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match="takes fp16 and bf16, got torch.float32"):
        cuda.forward(query, key, value, 0.3, None)

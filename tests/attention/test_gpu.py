"""Attention on CUDA in bf16 against the dense rule in fp64: output and all gradients. (Not run yet.)

Of the position and copy whose error is the largest (root mean square over heads and dimensions), the error
may be twice (output) and three times (gradients) that of the dense rule computed in bf16 throughout on the
same inputs; FlashAttention's own tests allow as much. The kernels round what they multiply to bf16 as plain
products do and keep sums in fp32; the fast path rounds once more where flash call and band meet. Kernels give
the gradients of keys and values for each query head and copy, rounded, before those of one key are added: so
does the plain computation here.
"""

import itertools

import pytest
import torch

from phd.attention.kernels import cuda
from phd.rules.keys import Blocks
from tests.attention.calls import FULL, attend, rule_of
from tests.attention.test_attention import random_inputs, run, starts_of

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
LENGTH = 133
DOCUMENTS = starts_of((1, 90, 42), (133,))
# window, chunk
RULES = {"PHD": (1, None), "PHD-SWA": (16, None), "PHD-CSWA": (16, 32)}
COPIES_AND_RULES = [(1, "PHD"), *itertools.product((2, 3, 5), RULES)]  # one copy: all rules are the same
TIMES_BF16 = {"output": 2, "dquery": 3, "dkey": 3, "dvalue": 3}


def assert_as_exact_as_bf16(
    copies,
    rule,
    *,
    keys=FULL,
    attention=attend,
    heads=8,
    groups=2,
    dim=64,
    length=LENGTH,
    fused=False,
    **arguments,
):
    """``arguments`` are further ones of ``attention``; with ``fused`` query, key and value are slices of one
    tensor, as Megatron's fused projection gives them.
    """
    window, chunk = RULES[rule]
    inputs = random_inputs(length, 2 * copies, heads, groups, dim, torch.bfloat16)
    if arguments.get("last_copy_only"):
        inputs[3] = inputs[3][:, ::copies]
    inputs = [x.to(DEVICE) for x in inputs]
    rule = rule_of(copies, window, chunk, keys)
    exact = run(inputs, rule, dtype=torch.float64, backend="reference", **arguments)
    plain = run(inputs, rule, function=head_by_head, backend="reference", **arguments)
    if fused:
        *qkv, grad = inputs
        inputs = [*torch.cat(qkv, dim=2).split([heads, groups, groups], dim=2), grad]
        assert not any(x.is_contiguous() for x in inputs[:3])
    found = run(inputs, rule, function=attention, **arguments)
    for (name, times), a, b, c in zip(TIMES_BF16.items(), exact, plain, found, strict=True):
        assert c.dtype == torch.bfloat16
        # [s, b*K, h, d] -> [s, b*K]
        error, allowed = ((x.double() - a).square().mean((2, 3)).sqrt().max().item() for x in (c, b))
        assert error <= times * allowed, f"{name}: {error:.2e}, of plain bf16 {allowed:.2e}"


def head_by_head(query, key, value, rule, **arguments):
    """Attention with keys and values of its own for each query head, and each copy by itself."""
    key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], dim=2) for x in (key, value))
    query_copies = 1 if arguments.get("last_copy_only") else rule.copies.count
    # [s, b*m, h, d] -> [s, b, h, d] of each of the m query copies
    outputs = [
        attend(query, key, value, rule, **arguments).unflatten(1, (-1, query_copies))[:, :, copy]
        for copy in range(query_copies)
    ]
    return torch.stack(outputs, dim=2).flatten(1, 2)


@pytest.fixture(params=["flash", "cudnn"])
def kernel(request, monkeypatch):
    """Each kernel of the fast path, whichever it would choose."""
    monkeypatch.setattr(cuda, "kernel_of", lambda *inputs: request.param)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("copies", "rule"), COPIES_AND_RULES)
def test_rules(copies, rule):
    assert_as_exact_as_bf16(copies, rule)


@pytest.mark.parametrize(("copies", "rule"), COPIES_AND_RULES)
def test_packed_documents(copies, rule):
    """One call for all of them, on FlashAttention 2 whichever is forced."""
    assert_as_exact_as_bf16(copies, rule, document_starts=DOCUMENTS)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("heads", "groups", "dim"), [(8, 2, 128), (8, 2, 96), (4, 4, 64), (6, 1, 64)])
@pytest.mark.parametrize("copies", [2, 3])
def test_heads(copies, heads, groups, dim):
    shape = {"heads": heads, "groups": groups, "dim": dim}
    assert_as_exact_as_bf16(copies, "PHD-CSWA", **shape)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("copies", [1, 2, 5])
def test_slices_of_one_projection(copies):
    assert_as_exact_as_bf16(copies, "PHD-CSWA", fused=True)


@pytest.mark.parametrize(("heads", "groups", "dim"), [(8, 2, 128), (8, 2, 96), (6, 1, 64)])
def test_heads_of_packed_documents(heads, groups, dim):
    shape = {"heads": heads, "groups": groups, "dim": dim}
    assert_as_exact_as_bf16(3, "PHD-CSWA", document_starts=DOCUMENTS, **shape)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("copies", [2, 3])
def test_last_copy_only(copies):
    assert_as_exact_as_bf16(copies, "PHD-CSWA", last_copy_only=True)


@pytest.mark.parametrize("length", [256, 257])
@pytest.mark.parametrize("copies", [1, 3])
def test_the_kernel_that_is_chosen(copies, length, monkeypatch):
    chosen, choose = set(), cuda.kernel_of

    def kernel_of(*arguments):
        chosen.add(choose(*arguments))
        return choose(*arguments)

    monkeypatch.setattr(cuda, "kernel_of", kernel_of)
    assert_as_exact_as_bf16(copies, "PHD-CSWA", length=length)
    hopper = torch.cuda.get_device_capability() >= (9, 0)
    assert chosen == {"cudnn" if hopper and length == 256 else "flash"}


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("pattern", [Blocks(16, 1, 3), Blocks(16, 0, 1, 3)], ids=["sink", "strided"])
@pytest.mark.parametrize("copies", [1, 2])
def test_sparse_layers(copies, pattern, documents):
    assert_as_exact_as_bf16(copies, "PHD-CSWA", document_starts=documents, keys=pattern)

"""Every backend against the dense float64 reference, and what the rule promises about the result."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from phd.attention import BACKENDS, Layout, attention
from tests.attention.calls import attend, rule_of

FAST = [name for name in BACKENDS if name != "reference"]
# Largest error relative to the largest element: some rounding units of each dtype.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 2e-2}
VARIANTS = [
    pytest.param(copies, window, chunk, id=f"K{copies}-W{window}-C{chunk}")
    for copies, window, chunk in itertools.product((1, 2, 3, 4, 5), (1, 4, 16), (8, 32, None))
]


def random_inputs(length, rows, heads=4, groups=2, dim=8, dtype=torch.float64, seed=0):
    """Query, key, value and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(length, rows, n, dim, dtype=torch.float64, generator=generator).to(dtype)
        for n in (heads, groups, groups, heads)
    ]


def run(inputs, rule, dtype=None, function=attend, **arguments):
    """Output and the three gradients, in the dtype of the inputs unless another is given."""
    *qkv, grad = (x.to(dtype or x.dtype) for x in inputs)
    qkv = [x.detach().requires_grad_() for x in qkv]
    out = function(*qkv, rule, **arguments)
    return [out.detach(), *torch.autograd.grad(out, qkv, grad)]


def assert_equal_to_reference(inputs, rule, backend="flash", *, tolerance=None, **arguments):
    tolerance = tolerance or TOLERANCE[inputs[0].dtype]
    expected = run(inputs, rule, dtype=torch.float64, backend="reference", **arguments)
    results = run(inputs, rule, backend=backend, **arguments)
    for name, result, reference in zip(
        ("output", "dquery", "dkey", "dvalue"), results, expected, strict=True
    ):
        assert result.dtype == inputs[0].dtype
        error = (result.double() - reference).abs().max() / reference.abs().max()
        assert error < tolerance, name


@pytest.mark.parametrize(("copies", "window", "chunk"), VARIANTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", FAST)
def test_backend_equals_reference(backend, dtype, copies, window, chunk):
    inputs = random_inputs(71, 2 * copies, dtype=dtype)
    assert_equal_to_reference(inputs, rule_of(copies, window, chunk), backend)


@pytest.mark.parametrize(
    ("length", "samples", "heads", "groups", "dim"),
    [
        pytest.param(2, 1, 1, 1, 4, id="two-positions"),
        pytest.param(31, 3, 6, 2, 5, id="odd-sizes"),
        pytest.param(33, 1, 3, 1, 24, id="one-group"),
        pytest.param(64, 2, 4, 4, 16, id="no-groups-whole-chunks"),
        pytest.param(301, 1, 2, 1, 8, id="long"),
    ],
)
@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("backend", FAST)
def test_shapes(backend, copies, length, samples, heads, groups, dim):
    inputs = random_inputs(length, samples * copies, heads, groups, dim)
    assert_equal_to_reference(inputs, rule_of(copies, 5, 12), backend)


@pytest.mark.parametrize(("window", "chunk"), [(700, None), (64, 100), (10, 3)])
@pytest.mark.parametrize("backend", FAST)
def test_wide_windows(backend, window, chunk):
    """Windows longer than the sequence, than a block of the band, than a chunk."""
    inputs = random_inputs(350, 3, heads=2, groups=1, dim=4)
    assert_equal_to_reference(inputs, rule_of(3, window, chunk), backend)


def starts_of(*lengths_of_samples):
    """document_starts [b, s] from the documents' lengths."""
    return torch.stack(
        [
            torch.repeat_interleave(torch.tensor([0, *lengths]).cumsum(0)[:-1], torch.tensor(lengths))
            for lengths in lengths_of_samples
        ]
    )


DOCUMENTS = starts_of((1, 30, 2, 14, 24), (71,))


@pytest.mark.parametrize(("copies", "window", "chunk"), VARIANTS)
@pytest.mark.parametrize("backend", FAST)
def test_packed_documents(backend, copies, window, chunk):
    inputs = random_inputs(71, 2 * copies)
    assert_equal_to_reference(inputs, rule_of(copies, window, chunk), backend, document_starts=DOCUMENTS)


@pytest.mark.parametrize("backend", FAST)
def test_packed_documents_of_naive_repetition(backend):
    assert_equal_to_reference(random_inputs(71, 6), rule_of("naive-3"), backend, document_starts=DOCUMENTS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["PHD-CSWA-3-5-8", "naive-3"])
def test_packed_documents_equal_separate_runs(name, backend):
    """Outputs and gradients of each document are those of a sequence that holds nothing else."""
    lengths = (1, 30, 2, 14, 24)
    inputs = random_inputs(71, 3)
    packed = run(inputs, rule_of(name), document_starts=starts_of(lengths), backend=backend)
    begin = 0
    for length in lengths:
        alone = run([x[begin : begin + length] for x in inputs], rule_of(name), backend=backend)
        for result, expected in zip(packed, alone, strict=True):
            torch.testing.assert_close(result[begin : begin + length], expected, rtol=1e-12, atol=1e-12)
        begin += length


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("name", ["vanilla", "PHD-CSWA-2-5-8", "PHD-CSWA-4-5-8", "naive-2", "naive-4"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_last_copy_only(backend, name, documents):
    """Output of the last copy, and the gradients that come from it, without the others' work."""
    rule = rule_of(name)
    copies = rule.copies.count
    arguments = {"document_starts": documents, "backend": backend}
    *inputs, grad = random_inputs(71, 2 * copies)
    grad.unflatten(1, (2, copies))[:, :, :-1] = 0
    expected = run([*inputs, grad], rule, **arguments)
    expected[0] = expected[0][:, copies - 1 :: copies]
    results = run([*inputs, grad[:, copies - 1 :: copies]], rule, last_copy_only=True, **arguments)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["PHD-CSWA-2-4-8", "naive-2"])
def test_softmax_scale(name):
    inputs, rule = random_inputs(21, 4), rule_of(name)
    assert_equal_to_reference(inputs, rule, scale=0.1)
    assert torch.equal(attend(*inputs[:3], rule), attend(*inputs[:3], rule, scale=8**-0.5))


@pytest.mark.parametrize("copies", [2, 3, 5])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", FAST)
def test_naive_equals_reference(backend, dtype, copies):
    inputs = random_inputs(37, 2 * copies, dtype=dtype)
    assert_equal_to_reference(inputs, rule_of(f"naive-{copies}"), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_originals_are_the_vanilla_transformer(backend):
    """Outputs of copy 0, and the gradients that come from them, are those of attention without copies."""
    copies = 3
    inputs = random_inputs(45, 2 * copies)
    grad = inputs[3].view(45, 2, copies, 4, 8)
    grad[:, :, 1:] = 0
    results = run(inputs, rule_of(copies, 4, 8), backend=backend)

    def vanilla(query, key, value, rule):
        # [s, b, h, d] -> [b, h, s, d]
        heads = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True).permute(2, 0, 1, 3)

    expected = run([x[:, ::copies] for x in inputs], None, function=vanilla)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result[:, ::copies], reference)
    for gradient in results[1:]:
        assert not gradient.unflatten(1, (2, copies))[:, :, 1:].any()


@pytest.mark.parametrize("key_position", [0, 12, 20, 36])
@pytest.mark.parametrize("key_copy", [0, 1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_key_reaches_its_queries_and_no_others(backend, key_copy, key_position):
    """Perturbation: changing one key and value changes the outputs of exactly those that may see it."""
    length, copies, rule = 37, 3, rule_of(3, 4, 8)
    query, key, value, _ = random_inputs(length, 2 * copies)
    before = attend(query, key, value, rule, backend=backend)
    key[key_position, copies + key_copy] += 1  # of the second sample
    value[key_position, copies + key_copy] += 1
    after = attend(query, key, value, rule, backend=backend)
    # [s, b*K, h, d] -> [s, b, K]
    changed = (before != after).any(-1).any(-1).view(length, 2, copies)
    position, copy = torch.arange(length)[:, None], torch.arange(copies)
    reached = rule.sees(position, copy, key_position, key_copy)
    assert not changed[:, 0].any()
    assert torch.equal(changed[:, 1], reached)


@pytest.mark.parametrize("backend", FAST)
def test_large_scores_stay_finite(backend):
    """Scores of thousands: exp overflows without a maximum, and originals and hidden keys lie far apart."""
    inputs = random_inputs(40, 3)
    inputs[0] *= 30
    inputs[1].view(40, 1, 3, 2, 8)[:, :, 1:] *= 30
    scores = 30 * 30 * 8
    rounding = (
        torch.finfo(torch.float64).eps * scores
    )  # exp turns a score's absolute error into a relative one
    assert_equal_to_reference(inputs, rule_of(3, 4, 8), backend, tolerance=rounding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"query": torch.zeros(5, 4, 4, 8)}, "4 rows, which K = 3 does not divide", id="rows"),
        pytest.param({"query": torch.zeros(5, 6, 8)}, r"query must be \[s, b\*K, h, d\]", id="query"),
        pytest.param({"query": torch.zeros(6, 6, 4, 8)}, "6 positions, its layout 5", id="positions"),
        pytest.param({"key": torch.zeros(5, 6, 3, 8)}, "key and value must be", id="groups"),
        pytest.param({"key": torch.zeros(5, 6, 16)}, "key and value must be", id="key-dimensions"),
        pytest.param({"value": torch.zeros(4, 6, 2, 8)}, "key and value must be", id="value-length"),
        pytest.param({"value": torch.zeros(5, 6, 2, 8).double()}, "one dtype", id="dtypes"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["PHD-SWA-3-4-inf", "naive-3"])
def test_refusals(name, backend, change, message):
    tensors = {
        "query": torch.zeros(5, 6, 4, 8),
        "key": torch.zeros(5, 6, 2, 8),
        "value": torch.zeros(5, 6, 2, 8),
    }
    layout = Layout.of(rule_of(name), 5)
    with pytest.raises(ValueError, match=message):
        BACKENDS[backend](**tensors | change, layout=layout)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        pytest.param(torch.zeros(2), r"document_starts must be \[b, s\]", id="documents"),
        pytest.param(torch.zeros(1, 5, dtype=torch.long), "with b = 2 samples", id="samples"),
        pytest.param(torch.tensor([[0, 0, 1, 3, 3]] * 2), "its document's first", id="document-starts"),
    ],
)
def test_refusals_of_documents(starts, message):
    query, key, value, _ = random_inputs(5, 6)
    with pytest.raises(ValueError, match=message):
        attend(query, key, value, rule_of(3, 4), document_starts=starts)


@pytest.mark.parametrize("shape", [(0, 6), (5, 0), (0, 0)], ids=["no positions", "no samples", "neither"])
@pytest.mark.parametrize("last_copy_only", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_attend(shape, last_copy_only, backend):
    """Empty results of the right shape, gradients too; PHD and naive repetition, packed or not."""
    length, rows = shape
    samples = rows // 3
    tensors = [torch.randn(*shape, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    starts = torch.zeros(samples, length, dtype=torch.long)
    for rule, documents in ((rule_of(3, 2, 4), None), (rule_of(3, 2), starts), (rule_of("naive-3"), starts)):
        arguments = {"document_starts": documents, "last_copy_only": last_copy_only, "backend": backend}
        out = attend(*tensors, rule, **arguments)
        assert out.shape == (length, samples if last_copy_only else rows, 4, 8)
        grads = torch.autograd.grad(out.sum(), tensors)
        assert [grad.shape for grad in grads] == [x.shape for x in tensors]
        with torch.no_grad():
            attend(*tensors, rule, **arguments)


@pytest.mark.parametrize(
    ("query", "key"),
    [((4, 2, 0, 8), (4, 2, 0, 8)), ((4, 2, 2, 0), (4, 2, 2, 0)), ((4, 2, 2, 8), (4, 2, 0, 8))],
)
def test_no_heads_or_dimensions(query, key):
    with pytest.raises(ValueError, match="at least 1 head of 1 dimension"):
        attention(torch.randn(query), torch.randn(key), torch.randn(key), Layout.of(rule_of(2), 4))

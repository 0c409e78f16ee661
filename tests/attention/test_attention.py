"""Every backend against the dense float64 reference, and what the rule promises about the result."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from phd.attention import BACKENDS as ALL_BACKENDS
from phd.attention import naive_attention, phd_attention, phd_layout
from phd.attention.rule import can_see

BACKENDS = [name for name in ALL_BACKENDS if name != "flex"]  # which has no backward on a CPU: test_flex.py
FAST = [name for name in BACKENDS if name not in ("auto", "reference")]
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


def run(function, inputs, dtype=None, **arguments):
    """Output and the three gradients, in the dtype of the inputs unless another is given."""
    *qkv, grad = (x.to(dtype or x.dtype) for x in inputs)
    qkv = [x.detach().requires_grad_() for x in qkv]
    out = function(*qkv, **arguments)
    return [out.detach(), *torch.autograd.grad(out, qkv, grad)]


def assert_equal_to_reference(function, inputs, backend, *, tolerance=None, **arguments):
    tolerance = tolerance or TOLERANCE[inputs[0].dtype]
    expected = run(function, inputs, dtype=torch.float64, backend="reference", **arguments)
    results = run(function, inputs, backend=backend, **arguments)
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
    assert_equal_to_reference(phd_attention, inputs, backend, copies=copies, window=window, chunk=chunk)


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
    assert_equal_to_reference(phd_attention, inputs, backend, copies=copies, window=5, chunk=12)


@pytest.mark.parametrize(("window", "chunk"), [(700, None), (64, 100), (10, 3)])
@pytest.mark.parametrize("backend", FAST)
def test_wide_windows(backend, window, chunk):
    """Windows longer than the sequence, than a block of the band, than a chunk."""
    inputs = random_inputs(350, 3, heads=2, groups=1, dim=4)
    assert_equal_to_reference(phd_attention, inputs, backend, copies=3, window=window, chunk=chunk)


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
    assert_equal_to_reference(
        phd_attention, inputs, backend, copies=copies, window=window, chunk=chunk, document_starts=DOCUMENTS
    )


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("backend", FAST)
def test_packed_documents_of_naive_repetition(backend, copies):
    inputs = random_inputs(71, 2 * copies)
    assert_equal_to_reference(naive_attention, inputs, backend, copies=copies, document_starts=DOCUMENTS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", [phd_attention, naive_attention])
def test_packed_documents_equal_separate_runs(function, backend):
    """Outputs and gradients of each document are those of a sequence that holds nothing else."""
    copies, lengths = 3, (1, 30, 2, 14, 24)
    arguments = {"copies": copies, "backend": backend}
    if function is phd_attention:
        arguments |= {"window": 5, "chunk": 8}
    inputs = random_inputs(71, copies)
    packed = run(function, inputs, document_starts=starts_of(lengths), **arguments)
    begin = 0
    for length in lengths:
        alone = run(function, [x[begin : begin + length] for x in inputs], **arguments)
        for result, expected in zip(packed, alone, strict=True):
            torch.testing.assert_close(result[begin : begin + length], expected, rtol=1e-12, atol=1e-12)
        begin += length


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("copies", [1, 2, 4])
@pytest.mark.parametrize("function", [phd_attention, naive_attention])
@pytest.mark.parametrize("backend", BACKENDS)
def test_last_copy_only(backend, function, copies, documents):
    """Output of the last copy, and the gradients that come from it, without the others' work."""
    arguments = {"copies": copies, "document_starts": documents, "backend": backend}
    if function is phd_attention:
        arguments |= {"window": 5, "chunk": 8}
    *inputs, grad = random_inputs(71, 2 * copies)
    grad.unflatten(1, (2, copies))[:, :, :-1] = 0
    expected = run(function, [*inputs, grad], **arguments)
    expected[0] = expected[0][:, copies - 1 :: copies]
    results = run(function, [*inputs, grad[:, copies - 1 :: copies]], last_copy_only=True, **arguments)
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [phd_attention, naive_attention])
def test_softmax_scale(function):
    arguments = {"window": 4, "chunk": 8} if function is phd_attention else {}
    inputs = random_inputs(21, 4)
    assert_equal_to_reference(function, inputs, "flash", copies=2, softmax_scale=0.1, **arguments)
    default = function(*inputs[:3], copies=2, **arguments)
    same = function(*inputs[:3], copies=2, softmax_scale=8**-0.5, **arguments)
    assert torch.equal(default, same)


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", FAST)
def test_naive_equals_reference(backend, dtype, copies):
    inputs = random_inputs(37, 2 * copies, dtype=dtype)
    assert_equal_to_reference(naive_attention, inputs, backend, copies=copies)


@pytest.mark.parametrize("backend", BACKENDS)
def test_originals_are_the_vanilla_transformer(backend):
    """Outputs of copy 0, and the gradients that come from them, are those of attention without copies."""
    copies = 3
    inputs = random_inputs(45, 2 * copies)
    grad = inputs[3].view(45, 2, copies, 4, 8)
    grad[:, :, 1:] = 0
    results = run(phd_attention, inputs, copies=copies, window=4, chunk=8, backend=backend)

    def vanilla(query, key, value):
        # [s, b, h, d] -> [b, h, s, d]
        heads = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True).permute(2, 0, 1, 3)

    expected = run(vanilla, [x[:, ::copies] for x in inputs])
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result[:, ::copies], reference)
    for gradient in results[1:]:
        assert not gradient.unflatten(1, (2, copies))[:, :, 1:].any()


@pytest.mark.parametrize("key_position", [0, 12, 20, 36])
@pytest.mark.parametrize("key_copy", [0, 1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_key_reaches_its_queries_and_no_others(backend, key_copy, key_position):
    """Perturbation: changing one key and value changes the outputs of exactly those that may see it."""
    length, copies, window, chunk = 37, 3, 4, 8
    query, key, value, _ = random_inputs(length, 2 * copies)
    arguments = {"copies": copies, "window": window, "chunk": chunk, "backend": backend}
    before = phd_attention(query, key, value, **arguments)
    key[key_position, copies + key_copy] += 1  # of the second sample
    value[key_position, copies + key_copy] += 1
    after = phd_attention(query, key, value, **arguments)
    # [s, b*K, h, d] -> [s, b, K]
    changed = (before != after).any(-1).any(-1).view(length, 2, copies)
    position, copy = torch.arange(length)[:, None], torch.arange(copies)
    reached = can_see(
        position, copy, torch.tensor(key_position), torch.tensor(key_copy), window=window, chunk=chunk
    )
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
    assert_equal_to_reference(phd_attention, inputs, backend, copies=3, window=4, chunk=8, tolerance=rounding)


def test_auto_is_the_fast_path():
    inputs = random_inputs(19, 2)[:3]
    outputs = [phd_attention(*inputs, copies=2, window=4, backend=name) for name in ("auto", "flash")]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"copies": 0}, "copies must be at least 1", id="copies"),
        pytest.param({"copies": 4}, "copies = 4 does not divide", id="rows"),
        pytest.param(
            {"backend": "fast"}, "backend must be one of auto, flash, flex, reference", id="backend"
        ),
        pytest.param({"query": torch.zeros(5, 6, 8)}, r"query must be \[s, b\*K, h, d\]", id="query"),
        pytest.param({"key": torch.zeros(5, 6, 3, 8)}, "key and value must be", id="groups"),
        pytest.param({"key": torch.zeros(5, 6, 16)}, "key and value must be", id="key-dimensions"),
        pytest.param({"value": torch.zeros(4, 6, 2, 8)}, "key and value must be", id="value-length"),
        pytest.param({"value": torch.zeros(5, 6, 2, 8).double()}, "one dtype", id="dtypes"),
    ],
)
@pytest.mark.parametrize("function", [phd_attention, naive_attention])
def test_refusals(function, change, message):
    tensors = {
        "query": torch.zeros(5, 6, 4, 8),
        "key": torch.zeros(5, 6, 2, 8),
        "value": torch.zeros(5, 6, 2, 8),
    }
    arguments = {"copies": 3} | ({"window": 4} if function is phd_attention else {})
    with pytest.raises(ValueError, match=message):
        function(**tensors | arguments | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"window": 0}, "window must be at least 1", id="window"),
        pytest.param({"chunk": 0}, "chunk must be at least 1 position, or None", id="chunk"),
        pytest.param(
            {"document_starts": torch.zeros(2)}, r"document_starts must be \[b, s\]", id="documents"
        ),
        pytest.param(
            {"document_starts": torch.zeros(1, 5, dtype=torch.long)}, "with b = 2 samples", id="samples"
        ),
        pytest.param(
            {"document_starts": torch.tensor([[0, 0, 1, 3, 3]] * 2)},
            "its document's first",
            id="document-starts",
        ),
    ],
)
def test_refusals_of_the_phd_rule(change, message):
    query, key, value, _ = random_inputs(5, 6)
    with pytest.raises(ValueError, match=message):
        phd_attention(query, key, value, **{"copies": 3, "window": 4} | change)


@pytest.mark.parametrize("shape", [(0, 6), (5, 0), (0, 0)], ids=["no positions", "no samples", "neither"])
@pytest.mark.parametrize("last_copy_only", [False, True])
@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_nothing_to_attend(shape, last_copy_only, backend):
    """Empty results of the right shape, gradients too; PHD and naive repetition, packed or not."""
    length, rows = shape
    copies, samples = 3, rows // 3
    tensors = [torch.randn(*shape, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    starts = torch.zeros(samples, length, dtype=torch.long)
    calls = [
        partial(phd_attention, window=2, chunk=4),
        partial(phd_attention, window=2, document_starts=starts),
    ]
    calls += [partial(naive_attention, document_starts=starts)] if backend != "flex" else []
    for call in calls:
        out = call(*tensors, copies=copies, last_copy_only=last_copy_only, backend=backend)
        assert out.shape == (length, samples if last_copy_only else rows, 4, 8)
        grads = torch.autograd.grad(out.sum(), tensors)
        assert [grad.shape for grad in grads] == [x.shape for x in tensors]
        with torch.no_grad():
            call(*tensors, copies=copies, last_copy_only=last_copy_only, backend=backend)


@pytest.mark.parametrize(
    ("query", "key"),
    [((4, 2, 0, 8), (4, 2, 0, 8)), ((4, 2, 2, 0), (4, 2, 2, 0)), ((4, 2, 2, 8), (4, 2, 0, 8))],
)
def test_no_heads_or_dimensions(query, key):
    with pytest.raises(ValueError, match="at least 1 head of 1 dimension"):
        phd_attention(torch.randn(query), torch.randn(key), torch.randn(key), copies=2, window=1)


def test_a_layout_of_no_positions():
    layout = phd_layout(0, copies=2, window=4, chunk=8, document_starts=torch.zeros(2, 0, dtype=torch.long))
    assert layout.pieces == () and layout.start.shape == (0, 2)

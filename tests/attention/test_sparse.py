"""Sparse layers (LongGen's patterns): the fast path against the dense reference, with and without copies."""

import pytest
import torch

from phd.attention import phd_attention, sparse
from phd.attention.pattern import Pattern
from tests.attention.test_attention import TOLERANCE, assert_equal_to_reference, random_inputs, run, starts_of
from tests.attention.test_flash import allocations

LENGTH = 83
DOCUMENTS = starts_of((1, 40, 2, 14, 26), (83,))
PATTERNS = {
    "sink": Pattern(4, sink=1, local=3),
    "two-sinks": Pattern(4, sink=2, local=2),
    "window": Pattern(4, sink=0, local=3),
    "strided": Pattern(4, sink=0, local=1, stride=3),
    "strided-local": Pattern(4, sink=1, local=3, stride=4),
    "all": Pattern(4, sink=0, local=1, stride=1),
    "one-block": Pattern(4, sink=0, local=1),
    "odd-block": Pattern(5, sink=1, local=2),
    "of-single-positions": Pattern(1, sink=1, local=4, stride=7),
    "wider-than-the-sequence": Pattern(64, sink=1, local=32),
}
VARIANTS = [(1, 1, None), (2, 4, 8), (3, 5, None)]


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize(("copies", "window", "chunk"), VARIANTS, ids=["K1", "CSWA-2", "SWA-3"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_output_and_gradients_equal_the_reference(pattern, copies, window, chunk, documents):
    inputs = random_inputs(LENGTH, 2 * copies)
    assert_equal_to_reference(
        phd_attention, inputs, "flash", copies=copies, window=window, chunk=chunk,
        document_starts=documents, pattern=PATTERNS[pattern],
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (6, 2), (4, 1)])
def test_heads_and_dtypes(heads, groups, dtype):
    inputs = random_inputs(LENGTH, 6, heads, groups, 5, dtype)
    arguments = {"copies": 2, "window": 4, "chunk": None, "pattern": PATTERNS["strided-local"]}
    assert_equal_to_reference(phd_attention, inputs, "flash", **arguments)


def test_last_copy_only():
    *inputs, grad = random_inputs(LENGTH, 6)
    inputs = [*inputs, grad[:, 2::3]]
    assert_equal_to_reference(
        phd_attention, inputs, "flash", copies=3, window=4, pattern=PATTERNS["sink"], last_copy_only=True
    )


def test_windows_are_cut_into_slices(monkeypatch):
    """The number of blocks at a time changes memory, not results."""
    inputs = random_inputs(LENGTH, 4)
    arguments = {"copies": 2, "window": 4, "pattern": PATTERNS["strided-local"]}
    whole = run(phd_attention, inputs, **arguments)
    monkeypatch.setitem(sparse._WINDOW_ELEMENTS, "cpu", 1)
    for result, expected in zip(run(phd_attention, inputs, **arguments), whole, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-14)


def test_what_fits_the_pattern_is_full_attention():
    """Up to the end of the block after the last sink and local ones every key is kept."""
    pattern = PATTERNS["sink"]
    length = pattern.block * (pattern.sink + pattern.local)
    inputs = random_inputs(length + 1, 2)
    full, sparse = (run(phd_attention, inputs, copies=2, window=4, pattern=p)[0] for p in (None, pattern))
    torch.testing.assert_close(sparse[:length], full[:length], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(sparse[length], full[length])


def test_keys_that_are_not_kept_change_nothing():
    pattern, length = PATTERNS["strided"], 60
    query, key, value, _ = random_inputs(length, 2)
    out = phd_attention(query, key, value, copies=2, window=1, pattern=pattern)
    dropped = ~pattern.keeps(torch.tensor(length - 1), torch.arange(length))
    key, value = key.clone(), value.clone()
    key[dropped, 0], value[dropped, 0] = 7.0, 7.0
    changed = phd_attention(query, key, value, copies=2, window=1, pattern=pattern)
    torch.testing.assert_close(changed[-1], out[-1], rtol=0, atol=0)
    assert not torch.allclose(changed[:-1], out[:-1])


@pytest.mark.parametrize("pattern", [Pattern(16, 1, 4), Pattern(16, 0, 1, 16)], ids=["sink", "strided"])
def test_nothing_quadratic_is_allocated(pattern):
    length = 4096
    largest, total = allocations(length, window=16, chunk=32, pattern=pattern)
    assert largest < length**2 / 2  # bytes: half of a bool mask between positions
    if pattern.stride is None:
        _, total_of_half = allocations(length // 2, window=16, chunk=32, pattern=pattern)
        assert total < 2.2 * total_of_half


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
def test_flex_makes_its_block_mask_of_the_same_rule(documents):
    inputs = random_inputs(LENGTH, 4, dim=16, dtype=torch.float32)[:3]
    arguments = {"copies": 2, "window": 4, "document_starts": documents, "pattern": PATTERNS["strided-local"]}
    out = phd_attention(*inputs, backend="flex", **arguments)
    expected = phd_attention(*(x.double() for x in inputs), backend="reference", **arguments)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)

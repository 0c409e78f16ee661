"""Sparse layers (LongGen's patterns): the fast path against the dense reference, with and without copies."""

import pytest
import torch

from phd.attention import sparse
from phd.rules.keys import Blocks, ByHead, Full, Groups
from tests.attention.calls import attend, rule_of
from tests.attention.test_attention import TOLERANCE, assert_equal_to_reference, random_inputs, run, starts_of
from tests.attention.test_flash import allocations

LENGTH = 83
DOCUMENTS = starts_of((1, 40, 2, 14, 26), (83,))
PATTERNS = {
    "sink": Blocks(4, sink=1, local=3),
    "two-sinks": Blocks(4, sink=2, local=2),
    "window": Blocks(4, sink=0, local=3),
    "strided": Blocks(4, sink=0, local=1, stride=3),
    "strided-local": Blocks(4, sink=1, local=3, stride=4),
    "all": Blocks(4, sink=0, local=1, stride=1),
    "one-block": Blocks(4, sink=0, local=1),
    "odd-block": Blocks(5, sink=1, local=2),
    "of-single-positions": Blocks(1, sink=1, local=4, stride=7),
    "wider-than-the-sequence": Blocks(64, sink=1, local=32),
    "groups": Groups(16),
    "shifted-groups": Groups(16, 8),
    # of two key/value heads
    "full-and-streaming-heads": ByHead(((1, Full()), (1, Blocks(1, 1, 7)))),
    "heads-shifted-by-half": ByHead(((1, Groups(16)), (1, Groups(16, 8)))),
}
VARIANTS = [(1, 1, None), (2, 4, 8), (3, 5, None)]


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize(("copies", "window", "chunk"), VARIANTS, ids=["K1", "CSWA-2", "SWA-3"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_output_and_gradients_equal_the_reference(pattern, copies, window, chunk, documents):
    inputs = random_inputs(LENGTH, 2 * copies)
    rule = rule_of(copies, window, chunk, PATTERNS[pattern])
    assert_equal_to_reference(inputs, rule, document_starts=documents)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (6, 2), (4, 1)])
def test_heads_and_dtypes(heads, groups, dtype):
    inputs = random_inputs(LENGTH, 6, heads, groups, 5, dtype)
    assert_equal_to_reference(inputs, rule_of(2, 4, keys=PATTERNS["strided-local"]))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("last_copy_only", [False, True])
def test_slices_of_heads(last_copy_only, documents, dtype):
    """Full ones in several places, and three rules."""
    strided, sink = PATTERNS["strided-local"], Blocks(64, 1, 1)
    keys = ByHead(((1, Full()), (2, strided), (1, Full()), (1, sink), (2, Full())))
    *inputs, grad = random_inputs(LENGTH, 6, 21, 7, 5, dtype)
    inputs = [*inputs, grad[:, 2::3] if last_copy_only else grad]
    arguments = {"document_starts": documents, "last_copy_only": last_copy_only}
    assert_equal_to_reference(inputs, rule_of(3, 4, 8, keys), **arguments)


def test_a_slice_of_heads_is_what_it_would_be_alone():
    """To the last bit: streaming heads by blocks of 1, of 64 and of 128, full ones, and shifted groups."""
    rules = Blocks(1, 4, 20), Full(), Blocks(64, 1, 2), Groups(50, 25), Blocks(128, 1, 2)
    inputs = random_inputs(400, 2, 10, 5)
    together = run(inputs, rule_of(2, 4, 8, ByHead(tuple((1, keys) for keys in rules))))
    for head, keys in enumerate(rules):
        where = [slice(2 * head, 2 * head + 2), *2 * [slice(head, head + 1)], slice(2 * head, 2 * head + 2)]
        alone = run([x[:, :, of] for x, of in zip(inputs, where, strict=True)], rule_of(2, 4, 8, keys))
        for whole, part, of in zip(together, alone, (where[0], *where[:3]), strict=True):
            assert torch.equal(whole[:, :, of], part)


def test_heads_that_do_not_fit():
    inputs = random_inputs(LENGTH, 1, 4, 4)[:3]
    for backend in ("flash", "reference"):
        with pytest.raises(ValueError, match=r"key has 4 heads, the layout's rule heads.1full.1sink.* for 2"):
            attend(*inputs, rule_of(1, keys=PATTERNS["full-and-streaming-heads"]), backend=backend)


def test_last_copy_only():
    *inputs, grad = random_inputs(LENGTH, 6)
    inputs = [*inputs, grad[:, 2::3]]
    assert_equal_to_reference(inputs, rule_of(3, 4, keys=PATTERNS["sink"]), last_copy_only=True)


def test_windows_are_cut_into_slices(monkeypatch):
    """The number of blocks at a time changes memory, not results."""
    inputs = random_inputs(LENGTH, 4)
    rule = rule_of(2, 4, keys=PATTERNS["strided-local"])
    whole = run(inputs, rule)
    monkeypatch.setitem(sparse._WINDOW_ELEMENTS, "cpu", 1)
    for result, expected in zip(run(inputs, rule), whole, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-14)


def test_what_fits_the_pattern_is_full_attention():
    """Up to the end of the block after the last sink and local ones every key is kept."""
    pattern = PATTERNS["sink"]
    length = pattern.block * (pattern.sink + pattern.local)
    inputs = random_inputs(length + 1, 2)
    full, sparse = (run(inputs, rule_of(2, 4, keys=keys))[0] for keys in (Full(), pattern))
    torch.testing.assert_close(sparse[:length], full[:length], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(sparse[length], full[length])


def test_keys_that_are_not_kept_change_nothing():
    pattern, length = PATTERNS["strided"], 60
    query, key, value, _ = random_inputs(length, 2)
    rule = rule_of(2, keys=pattern)
    out = attend(query, key, value, rule)
    dropped = ~pattern.keeps(length - 1, torch.arange(length))
    key, value = key.clone(), value.clone()
    key[dropped, 0], value[dropped, 0] = 7.0, 7.0
    changed = attend(query, key, value, rule)
    torch.testing.assert_close(changed[-1], out[-1], rtol=0, atol=0)
    assert not torch.allclose(changed[:-1], out[:-1])


@pytest.mark.parametrize("pattern", [Blocks(16, 1, 4), Blocks(16, 0, 1, 16)], ids=["sink", "strided"])
def test_nothing_quadratic_is_allocated(pattern):
    length = 4096
    largest, total = allocations(length, rule_of(3, 16, 32, pattern))
    assert largest < length**2 / 2  # bytes: half of a bool mask between positions
    if pattern.stride is None:
        _, total_of_half = allocations(length // 2, rule_of(3, 16, 32, pattern))
        assert total < 2.2 * total_of_half

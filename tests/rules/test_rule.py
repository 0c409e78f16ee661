import itertools

import pytest
import torch

from phd.attention.reference import dense_mask
from phd.rules.copies import Copies
from phd.rules.keys import Blocks, Full, Groups
from phd.rules.rule import AttentionRule
from tests.attention.calls import rule_of
from tests.attention.test_attention import starts_of

LENGTH = 37
CASES = [*itertools.product((1, 2, 3, 5), (1, 4, 16), (8, 32, None))]
VARIANTS = [pytest.param(*case, id="K{}-W{}-C{}".format(*case)) for case in CASES]
DOCUMENTS = (5, 1, 20, 11)
STARTS = starts_of(DOCUMENTS, (LENGTH,))
KEYS = [Full(), Blocks(4, 1, 2), Blocks(5, 0, 1, 3), Blocks(1, 2, 3, 4)]


def keys_in_the_paper_s_words(n, j, copies, window, chunk):
    """Keys that copy j of position n sees, listed sentence by sentence (section 3)."""
    keys = set()
    for m in range(n + 1):
        keys.add((m, 0))  # the KV cache: every original token so far
    for i in range(1, j + 1):
        keys.add((n, i))  # the token's own copies, up to this one
    if j >= 1:
        nearest = range(n, -1, -1)[:window]  # the window's positions, nearest first, this one included
        for m in nearest:
            if chunk is not None and m // chunk != n // chunk:
                break  # the window ends at the chunk's first position
            if m < n:
                keys.update((m, i) for i in range(1, copies))
    return keys


@pytest.mark.parametrize(("copies", "window", "chunk"), VARIANTS)
def test_a_rule_is_what_the_paper_says(copies, window, chunk):
    """On tensors and on integers alike."""
    rule = rule_of(copies, window, chunk)
    (mask,) = dense_mask(rule, LENGTH)
    for n in range(LENGTH):
        for j in range(copies):
            expected = keys_in_the_paper_s_words(n, j, copies, window, chunk)
            assert {tuple(key) for key in mask[n, j].nonzero().tolist()} == expected, (n, j)
            if n % 9 == 0:
                grid = ((m, i) for m in range(LENGTH) for i in range(copies))
                assert {key for key in grid if rule.sees(n, j, *key)} == expected, (n, j)


def test_by_hand():
    """PHD-CSWA-3-2-4 around the border of a chunk; rows are the copies of a query, columns those of a key."""
    rule = rule_of(3, 2, 4)

    def seen(n, m):
        return [[int(rule.sees(n, j, m, i)) for i in range(3)] for j in range(3)]

    assert seen(5, 5) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert seen(5, 4) == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert seen(5, 3) == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]  # beyond the window
    assert seen(4, 3) == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]  # another chunk
    assert seen(4, 5) == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]  # the future


@pytest.mark.parametrize("copies", [2, 4])
def test_naive_is_causal_in_position_major_order(copies):
    tokens = LENGTH * copies
    mask = dense_mask(rule_of(f"naive-{copies}"), LENGTH).reshape(tokens, tokens)
    assert torch.equal(mask, torch.ones(tokens, tokens, dtype=torch.bool).tril())


@pytest.mark.parametrize(("copies", "window", "chunk"), VARIANTS[::4])
@pytest.mark.parametrize("keys", KEYS[1:], ids=str)
def test_keys_restrict_the_originals_of_all_copies_and_nothing_else(keys, copies, window, chunk):
    full, sparse = (dense_mask(rule_of(copies, window, chunk, of), LENGTH)[0] for of in (Full(), keys))
    assert torch.equal(sparse[..., 1:], full[..., 1:])
    alone = dense_mask(rule_of(1, keys=keys), LENGTH)[0, :, 0, :, 0]
    for copy in range(copies):
        assert torch.equal(sparse[:, copy, :, 0], alone)


@pytest.mark.parametrize(
    "rule",
    [
        *(pytest.param(rule_of(*case), id="K{}-W{}-C{}".format(*case)) for case in CASES),
        *(pytest.param(rule_of(3, 4, 8, keys), id=f"{keys}") for keys in KEYS[1:]),
        pytest.param(rule_of("naive-3"), id="naive-3"),
    ],
)
def test_documents_see_what_each_would_alone(rule):
    """A document's block is the mask of a sequence of its own, chunks and blocks from its start; the rest is
    empty.
    """
    packed, whole = dense_mask(rule, LENGTH, document_starts=STARTS)
    assert torch.equal(whole, dense_mask(rule, LENGTH)[0])
    begin = 0
    for length in DOCUMENTS:
        rows = slice(begin, begin + length)
        assert torch.equal(packed[rows, :, rows], dense_mask(rule, length)[0])
        packed[rows, :, rows] = False
        begin += length
    assert not packed.any()


RULES = [
    *(rule_of(*case) for case in ((1,), (3,), (2, 4), (5, 16, 32), (3, 4, 8), (2, 16, 5))),
    rule_of("naive-3"),
    *(rule_of(1, keys=keys) for keys in KEYS[1:]),
    *(rule_of(3, 4, 8, keys) for keys in KEYS[1:]),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.copies}+{rule.keys}")


@every_rule
@pytest.mark.parametrize("last_copy_only", [False, True])
def test_visible_pairs(rule, last_copy_only):
    for length in (1, 7, 32, 33, 75):
        mask = dense_mask(rule, length)
        seen = int((mask[:, :, -1] if last_copy_only else mask).sum())
        assert rule.visible_pairs(length, last_copy_only=last_copy_only) == seen


@every_rule
def test_retained_is_what_later_queries_see(rule):
    """The originals that any later query sees, and the hidden copies that the next position sees."""
    count = rule.copies.count
    for length in (1, 3, 4, 5, 8, 20, 39, 40, 41):
        mask = dense_mask(rule, length + 60)[0, length:, :, :length]  # [later, K, earlier, K]
        originals = mask[..., 0].any(0).any(0).sum()
        hidden = mask[0, :, :, 1:].any(0).sum()
        if rule.copies.cached:
            hidden = (count - 1) * length
        assert rule.retained(length) == int(originals) + int(hidden), length


def test_groups_are_full_outside_training():
    rule = rule_of(3, 4, 8, Groups(4, 2))
    assert rule.outside_training == rule_of(3, 4, 8)
    for keys in KEYS:
        assert rule_of(3, 4, 8, keys).outside_training == rule_of(3, 4, 8, keys)


def test_refusals():
    with pytest.raises(ValueError, match="naive repetition has full layers alone"):
        AttentionRule(Copies(2, cached=True), Blocks())
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        rule_of(2).visible_pairs(0)

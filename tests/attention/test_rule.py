import pytest
import torch

from phd.attention.rule import band_start, can_see, can_see_naive, dense_mask, dense_mask_naive

LENGTH = 37
VARIANTS = [
    pytest.param(copies, window, chunk, id=f"K{copies}-W{window}-C{chunk}")
    for copies in (1, 2, 3, 5)
    for window in (1, 4, 16)
    for chunk in (8, 32, None)
]


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
def test_can_see_is_what_the_paper_says(copies, window, chunk):
    (mask,) = dense_mask(LENGTH, copies, window=window, chunk=chunk)
    for n in range(LENGTH):
        for j in range(copies):
            seen = {tuple(key) for key in mask[n, j].nonzero().tolist()}
            assert seen == keys_in_the_paper_s_words(n, j, copies, window, chunk), (n, j)


def test_can_see_by_hand():
    """PHD-CSWA-3-2-4 around the border of a chunk; rows are the copies of a query, columns those of a key."""

    def seen(n, m):
        copy = torch.arange(3)
        mask = can_see(torch.tensor(n), copy[:, None], torch.tensor(m), copy, window=2, chunk=4)
        return mask.int().tolist()

    assert seen(5, 5) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert seen(5, 4) == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert seen(5, 3) == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]  # beyond the window
    assert seen(4, 3) == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]  # another chunk
    assert seen(4, 5) == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]  # the future


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_naive_is_causal_in_position_major_order(copies):
    tokens = LENGTH * copies
    mask = dense_mask_naive(LENGTH, copies).reshape(tokens, tokens)
    assert torch.equal(mask, torch.ones(tokens, tokens, dtype=torch.bool).tril())


def test_one_copy_is_causal_under_every_rule():
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    assert torch.equal(dense_mask(LENGTH, 1, window=16, chunk=8)[0, :, 0, :, 0], causal)
    assert torch.equal(dense_mask_naive(LENGTH, 1)[0, :, 0, :, 0], causal)


def test_predicates_broadcast():
    position, copy = torch.arange(6), torch.arange(2)
    shape = (6, 2)
    assert (
        can_see(position[:, None], copy, position[:, None], torch.tensor(0), window=2, chunk=None).shape
        == shape
    )
    assert can_see_naive(position[:, None], copy, torch.tensor(3), copy).shape == shape


@pytest.mark.parametrize(
    ("window", "chunk", "expected"),
    [
        pytest.param(1, None, [0, 1, 2, 3, 4, 5, 6], id="plain"),
        pytest.param(3, None, [0, 0, 0, 1, 2, 3, 4], id="window"),
        pytest.param(3, 4, [0, 0, 0, 1, 4, 4, 4], id="window-and-chunk"),
        pytest.param(9, 4, [0, 0, 0, 0, 4, 4, 4], id="chunk-shorter-than-window"),
    ],
)
def test_band_start(window, chunk, expected):
    assert band_start(torch.arange(7), window=window, chunk=chunk).tolist() == expected


@pytest.mark.parametrize(("copies", "window", "chunk"), VARIANTS)
def test_documents_are_blocks_of_the_mask(copies, window, chunk):
    """A document's block is the mask of a sequence of its own, chunks from its start; the rest is empty."""
    lengths = (5, 1, 20, 11)
    starts = torch.tensor([[0] * 5 + [5] + [6] * 20 + [26] * 11, [0] * LENGTH])
    packed, whole = dense_mask(LENGTH, copies, window=window, chunk=chunk, document_starts=starts)
    packed_naive, whole_naive = dense_mask_naive(LENGTH, copies, document_starts=starts)
    assert torch.equal(whole, dense_mask(LENGTH, copies, window=window, chunk=chunk)[0])
    assert torch.equal(whole_naive, dense_mask_naive(LENGTH, copies)[0])
    begin = 0
    for length in lengths:
        rows = slice(begin, begin + length)
        assert torch.equal(packed[rows, :, rows], dense_mask(length, copies, window=window, chunk=chunk)[0])
        assert torch.equal(packed_naive[rows, :, rows], dense_mask_naive(length, copies)[0])
        packed[rows, :, rows] = packed_naive[rows, :, rows] = False
        begin += length
    assert not packed.any() and not packed_naive.any()

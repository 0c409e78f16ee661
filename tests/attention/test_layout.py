"""Triangles and rectangles of a layout together are exactly what the rule lets originals see."""

from types import SimpleNamespace

import pytest
import torch

from phd.attention import Layout
from phd.attention.context_parallel import ContextParallel
from phd.attention.kept import kept_keys
from phd.attention.reference import dense_mask
from phd.attention.slices import rank_segments
from phd.attention.sparse import SparseOriginals
from phd.rules.copies import Copies
from phd.rules.keys import Blocks
from phd.rules.rule import AttentionRule
from tests.attention.calls import rule_of
from tests.attention.test_attention import starts_of

LENGTH = 48


class Ranks(ContextParallel):
    """One of several ranks, without a process group."""

    def __init__(self, rank, size):
        object.__setattr__(self, "comm_type", "p2p")
        object.__setattr__(self, "group", SimpleNamespace(rank=lambda: rank, size=lambda: size))


def layout_of(window, chunk, *, documents=None, rank=0, size=1, length=LENGTH):
    parallel = None if size == 1 else Ranks(rank, size)
    return Layout.of(rule_of(2, window, chunk), length, document_starts=documents, parallel=parallel)


DOCUMENTS = starts_of((3, 21, 1, 23), (48,), (12, 12, 24))


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_visible_pair_is_covered_once(size, documents):
    count = torch.zeros(3, LENGTH, LENGTH, dtype=torch.int)
    starts = None if documents is None else documents
    for rank in range(size):
        layout = layout_of(4, 8, documents=starts, rank=rank, size=size)
        positions = torch.cat([segment.begin + torch.arange(segment.length) for segment in layout.segments])
        for piece in layout.pieces:
            rows = positions[piece.rows]
            count[piece.samples, rows[:, None], rows] += torch.ones(
                len(rows), len(rows), dtype=torch.int
            ).tril()
        for source in range(size):
            segments = rank_segments(LENGTH, source, size)
            keys = torch.cat([segment.begin + torch.arange(segment.length) for segment in segments])
            for piece, key_rows in layout.earlier(segments):
                count[piece.samples, positions[piece.rows][:, None], keys[key_rows]] += 1
    expected = dense_mask(rule_of(1), LENGTH, document_starts=documents)[:, :, 0, :, 0]
    assert torch.equal(count, expected.int().expand_as(count))


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
def test_starts_are_the_rule_s(documents):
    position = torch.arange(LENGTH)
    for rank in range(2):
        layout = layout_of(5, 7, documents=documents, rank=rank, size=2)
        mine = torch.cat(
            [position[segment.begin : segment.begin + segment.length] for segment in layout.segments]
        )
        start = Copies(2, 5, 7).band_start(position, 0 if documents is None else documents)
        expected = start.expand(3, LENGTH)
        assert torch.equal(layout.start.expand(-1, 3), expected[:, mine].T)


@pytest.mark.parametrize(
    ("chunk", "documents", "size", "halo"),
    [
        pytest.param(None, None, 1, 0, id="one-rank"),
        pytest.param(None, None, 2, 4, id="no-chunks"),
        pytest.param(6, None, 2, 0, id="chunks-divide-slices"),
        pytest.param(7, None, 2, 4, id="chunks-cross-slices"),
        pytest.param(6, DOCUMENTS, 2, 4, id="documents-shift-chunks"),
        pytest.param(3, DOCUMENTS, 2, 2, id="chunk-below-window"),
    ],
)
def test_halo(chunk, documents, size, halo):
    layout = layout_of(5, chunk, documents=documents, size=size)
    assert layout.halo == halo


def test_layouts_without_documents_are_made_once():
    assert layout_of(4, 8) is layout_of(4, 8)


def test_ranks_look_up_once_what_a_sparse_layer_keeps():
    """Each call of a layer asks for its layout anew."""
    rule = AttentionRule(keys=Blocks(4, 1, 2))
    query = torch.zeros(LENGTH // 2, 1, 1, 2, 4)
    kept_keys.cache_clear()
    for _ in range(3):
        layout = Layout.of(rule, LENGTH, parallel=Ranks(0, 2))
        layout.parallel.__dict__["fetch"] = lambda keys, exchange: keys  # nobody is there to send some
        SparseOriginals(query, query[:, :, 0], query[:, :, 0], layout, 1.0)
    assert kept_keys._real.cache_info().misses == 1


def test_refusals():
    with pytest.raises(ValueError, match="48 positions cannot be cut into 10 slices for 5 ranks"):
        layout_of(1, None, size=5)
    with pytest.raises(
        ValueError, match="slice of 6 positions .* shorter than the 8 positions of the window"
    ):
        layout_of(9, None, size=4)


def test_a_layout_of_no_positions():
    layout = Layout.of(rule_of(2, 4, 8), 0, document_starts=torch.zeros(2, 0, dtype=torch.long))
    assert layout.pieces == () and layout.start.shape == (0, 2)

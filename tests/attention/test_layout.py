"""Triangles and rectangles of a layout together are exactly what the rule lets originals see."""

import pytest
import torch

from phd.attention.layout import make_layout, rank_runs
from phd.attention.rule import band_start, dense_mask
from tests.attention.test_attention import starts_of

LENGTH = 48
DOCUMENTS = starts_of((3, 21, 1, 23), (48,), (12, 12, 24))


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_visible_pair_is_covered_once(size, documents):
    count = torch.zeros(3, LENGTH, LENGTH, dtype=torch.int)
    starts = None if documents is None else documents
    for rank in range(size):
        layout = make_layout(LENGTH, window=4, chunk=8, document_starts=starts, rank=rank, size=size)
        positions = torch.cat([run.begin + torch.arange(run.length) for run in layout.runs])
        for piece in layout.pieces:
            rows = positions[piece.rows]
            count[piece.samples, rows[:, None], rows] += torch.ones(
                len(rows), len(rows), dtype=torch.int
            ).tril()
        for source in range(size):
            runs = rank_runs(LENGTH, source, size)
            keys = torch.cat([run.begin + torch.arange(run.length) for run in runs])
            for piece, key_rows in layout.earlier(runs):
                count[piece.samples, positions[piece.rows][:, None], keys[key_rows]] += 1
    expected = dense_mask(LENGTH, 1, window=1, chunk=None, document_starts=documents)[:, :, 0, :, 0]
    assert torch.equal(count, expected.int().expand_as(count))


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
def test_starts_are_the_rule_s(documents):
    position = torch.arange(LENGTH)
    for rank in range(2):
        layout = make_layout(LENGTH, window=5, chunk=7, document_starts=documents, rank=rank, size=2)
        mine = torch.cat([position[run.begin : run.begin + run.length] for run in layout.runs])
        expected = band_start(position, window=5, chunk=7, document_start=documents).expand(3, LENGTH)
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
    layout = make_layout(LENGTH, window=5, chunk=chunk, document_starts=documents, size=size)
    assert layout.halo == halo


def test_layouts_without_documents_are_made_once():
    assert make_layout(64, window=4, chunk=8) is make_layout(64, window=4, chunk=8)


def test_refusals():
    with pytest.raises(ValueError, match="48 positions cannot be cut into 10 slices for 5 ranks"):
        make_layout(48, window=1, chunk=None, size=5)
    with pytest.raises(
        ValueError, match="slice of 6 positions .* shorter than the 8 positions of the window"
    ):
        make_layout(48, window=9, chunk=None, size=4)

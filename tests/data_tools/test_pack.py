"""The statistics against their definitions, counted token by token."""

import numpy as np
import pytest

from data_tools.indexed import write_index
from data_tools.pack import pack, statistics


def slow_best_fit(lengths, length):
    rooms, full = [], 0
    pieces = []
    for document in lengths:
        full += document // length
        if document % length:
            pieces.append(document % length)
    for piece in sorted(pieces, reverse=True):
        fitting = [room for room in rooms if room >= piece]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - piece)
        else:
            rooms.append(length - piece)
    return full + len(rooms)


@pytest.mark.parametrize("length", [1, 2, 7, 16, 50])
@pytest.mark.parametrize("seed", range(4))
def test_against_counting(length, seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 40, 60)
    result = statistics(lengths, length)
    document = np.repeat(np.arange(60), lengths)
    inside = np.concatenate([np.arange(n) for n in lengths]) + 1
    place = np.arange(len(document))
    assert result.mean_context == pytest.approx(np.minimum(inside, place % length + 1).mean())
    samples = [set((place[document == d] // length).tolist()) for d in range(60)]
    assert result.cut_documents == pytest.approx(np.mean([len(each) > 1 for each in samples]))
    assert result.longer_documents == pytest.approx(np.mean(lengths > length))
    assert result.tokens_in_longer == pytest.approx(lengths[lengths > length].sum() / lengths.sum())
    assert result.samples == (lengths.sum() - 1) // length
    assert result.packed_sequences == slow_best_fit(lengths.tolist(), length)
    assert result.padding == pytest.approx(1 - lengths.sum() / (result.packed_sequences * length))


def test_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lengths = np.array([5, 0, 9], np.int32)
    np.zeros(14, np.uint16).tofile(tmp_path / "a.bin")
    write_index(tmp_path / "a.idx", np.dtype(np.uint16), [lengths])
    result, _ = pack(tmp_path / "a", [8, 131072])
    assert result.packed_sequences == 2
    output = capsys.readouterr().out
    assert "3 documents" in output
    for heading in ("131,072", "documents cut", "mean context seen", "packed whole: padding"):
        assert heading in output
    assert max(map(len, output.splitlines()[1:])) <= 80
    with pytest.raises(ValueError, match="--length must be at least 1"):
        pack(tmp_path / "a", [0])


def test_no_tokens(tmp_path):
    (tmp_path / "a.bin").touch()
    write_index(tmp_path / "a.idx", np.dtype(np.uint16), [np.zeros(2, np.int32)])
    with pytest.raises(ValueError, match="holds no tokens"):
        pack(tmp_path / "a", [8])


@pytest.mark.parametrize("length", [0, -1, 2**31, 10**30])
def test_lengths_that_are_none(length, tmp_path):
    with pytest.raises(ValueError, match="--length must be at (least|most)"):
        pack(tmp_path / "a", [8, length])


def test_a_context_longer_than_all_documents():
    """Its time and memory depend on the documents."""
    result = statistics(np.array([3, 5, 2]), 2**31 - 1)
    assert (result.packed_sequences, result.samples, result.cut_documents) == (1, 0, 0)

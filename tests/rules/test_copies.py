import pytest
import torch

from phd.rules.copies import Copies


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
    """Of integers and of tensors; a document of its own shifts all by its start."""
    copies = Copies(2, window, chunk)
    assert [copies.band_start(position) for position in range(7)] == expected
    assert copies.band_start(torch.arange(7)).tolist() == expected
    shifted = copies.band_start(torch.arange(50, 57)[:, None], torch.tensor([50, 0]))
    assert (shifted[:, 0] - 50).tolist() == expected


@pytest.mark.parametrize(
    ("copies", "name"),
    [
        (Copies(), "vanilla"),
        (Copies(3), "PHD-3"),
        (Copies(5, 16), "PHD-SWA-5-16-inf"),
        (Copies(2, 16, 32), "PHD-CSWA-2-16-32"),
        (Copies(4, cached=True), "naive-4"),
    ],
)
def test_names(copies, name):
    assert str(copies) == name
    assert Copies.parse(name) == copies


def test_fields_without_effect_hold_one_value():
    assert Copies(1, 16, 32) == Copies()
    assert Copies(3, 1, 32) == Copies(3)
    assert Copies(3, 16, 1) == Copies(3)
    assert Copies(2, 40, 32) == Copies(2, 32, 32)
    assert Copies(2, 16, 32, cached=True) == Copies(2, cached=True)
    assert Copies.parse("PHD-SWA-2-1-inf") == Copies(2)
    assert len({Copies(2, 16, 32), Copies(2, 16), Copies(2), Copies(2, cached=True)}) == 4


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"count": 0}, "copies must be at least 1, got 0"),
        ({"count": 2, "window": 0}, "window must be at least 1, got 0"),
        ({"count": 2, "chunk": 0}, "chunk must be at least 1, got 0"),
        ({"cached": True}, "naive repetition needs at least 2 copies"),
    ],
)
def test_refusals(numbers, message):
    with pytest.raises(ValueError, match=message):
        Copies(**numbers)


@pytest.mark.parametrize(
    "name", ["", "PHD", "PHD-CSWA-2-16", "PHD-SWA-2-16-32", "vanilla-1", "naive-x", "phd-2"]
)
def test_no_name(name):
    with pytest.raises(
        ValueError, match=f"'{name}' names no copies: write vanilla, naive-K, naive-K-consecutive, PHD-K"
    ):
        Copies.parse(name)

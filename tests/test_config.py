"""PHDConfig: names of the variants, and every refused value names its flag."""

import pytest

from phd.config import PHDConfig


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "vanilla"),
        ({"phd_copies": 2}, "PHD-CSWA-2-16-32"),
        ({"phd_copies": 5, "phd_chunk": 0}, "PHD-SWA-5-16-inf"),
        ({"phd_copies": 3, "phd_window": 1}, "PHD-3"),
        ({"phd_copies": 4, "phd_naive": True}, "naive-4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_variant(fields, name):
    assert PHDConfig(**fields).variant == name


def test_chunk_is_none_without_chunks():
    assert PHDConfig(phd_copies=2, phd_chunk=0).chunk is None
    assert PHDConfig(phd_copies=2, phd_chunk=48).chunk == 48


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phd_copies": 0}, "--phd-copies must be at least 1"),
        ({"phd_window": 0}, "--phd-window must be at least 1"),
        ({"phd_chunk": -1}, "--phd-chunk must be positive"),
        ({"phd_window": 33}, "--phd-window 33 reaches beyond --phd-chunk 32"),
        ({"phd_naive": True}, "--phd-naive repeats tokens"),
        ({"phd_attention_backend": "fast"}, "--phd-attention-backend must be one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PHDConfig(**fields)

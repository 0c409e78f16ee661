"""PHDConfig: names of the variants, and every refused value names its flag."""

from argparse import Namespace

import pytest

from phd.attention.pattern import Pattern
from phd.config import VARIANT_FIELDS, PHDConfig, trained_variant


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "vanilla"),
        ({"phd_copies": 2}, "PHD-CSWA-2-16-32"),
        ({"phd_copies": 5, "phd_chunk": 0}, "PHD-SWA-5-16-inf"),
        ({"phd_copies": 3, "phd_window": 1}, "PHD-3"),
        ({"phd_copies": 4, "phd_naive": True}, "naive-4"),
        ({"attention_pattern": "longgen-sink"}, "longgen-sink"),
        ({"attention_pattern": "block-sparse"}, "block-sparse"),
        ({"attention_pattern": "1*sink,2*full,1*sink"}, "1sink-2full-1sink"),
        ({"phd_copies": 2, "attention_pattern": "longgen-block"}, "PHD-CSWA-2-16-32+longgen-block"),
        ({"phd_copies": 3, "phd_window": 1, "attention_pattern": "1*full,3*sink"}, "PHD-3+1full-3sink"),
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
        (
            {"attention_pattern": "sink", "phd_copies": 2, "phd_naive": True},
            "--attention-pattern does not run with --phd-naive",
        ),
        ({"attention_pattern_block": 0}, "--attention-pattern-block must be at least 1"),
        ({"attention_pattern_sink_blocks": -1}, "--attention-pattern-sink-blocks must be at least 0"),
        ({"attention_pattern_local_blocks": 0}, "--attention-pattern-local-blocks must be at least 1"),
        ({"attention_pattern_stride": 0}, "--attention-pattern-stride must be at least 1"),
        (
            {"attention_pattern_stride_local_blocks": 0},
            "--attention-pattern-stride-local-blocks must be at least 1",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PHDConfig(**fields)


def test_patterns_of_the_layers():
    """The numbers of both kinds come from their own flags; block sizes are common."""
    assert PHDConfig().patterns(4) == (None,) * 4
    sink, strided = Pattern(64, 1, 32), Pattern(64, 0, 1, 64)
    assert (
        PHDConfig(attention_pattern="longgen-sink").patterns(32) == (sink,) * 10 + (None,) * 12 + (sink,) * 10
    )
    assert PHDConfig(attention_pattern="longgen-block").patterns(3) == (strided, None, strided)
    numbers = {"block": 16, "sink_blocks": 2, "local_blocks": 3, "stride": 4, "stride_local_blocks": 5}
    config = PHDConfig(
        attention_pattern="1*sink,1*full,2*block-sparse",
        **{f"attention_pattern_{name}": value for name, value in numbers.items()},
    )
    assert config.patterns(4) == (Pattern(16, 2, 3), None, *2 * [Pattern(16, 0, 5, 4)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("longgen", "'longgen' is no attention pattern"),
        ("2*sink,2*dense", r"'2\*dense' is no attention pattern"),
        ("2*sink,1*full", "has 3 layers, the model 4"),
    ],
)
def test_pattern_of_the_layers_is_refused(text, message):
    with pytest.raises(ValueError, match=f"^--attention-pattern: .*{message}"):
        PHDConfig(attention_pattern=text).patterns(4)


def test_trained_variant_is_read_from_a_checkpoints_arguments():
    """Those of other programs, of versions without patterns, and of a run of today."""
    assert trained_variant(Namespace(num_layers=4)) == PHDConfig()
    old = Namespace(phd_copies=3, phd_window=4, phd_chunk=8, phd_naive=False, num_layers=4)
    assert trained_variant(old).variant == "PHD-CSWA-3-4-8"
    today = PHDConfig(phd_copies=2, attention_pattern="longgen-sink", attention_pattern_local_blocks=4)
    arguments = {name: getattr(today, name) for name in VARIANT_FIELDS}
    assert trained_variant(Namespace(**arguments, num_layers=4)) == today

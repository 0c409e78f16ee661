"""PHDConfig: names of the variants, and every refused value names its flag."""

import pytest

from phd.config import PHDConfig
from phd.rules.copies import Copies
from phd.rules.keys import Blocks
from phd.rules.rule import AttentionRule


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "vanilla"),
        ({"phd_copies": 2}, "PHD-CSWA-2-16-32"),
        ({"phd_copies": 5, "phd_chunk": 0}, "PHD-SWA-5-16-inf"),
        ({"phd_copies": 3, "phd_window": 1}, "PHD-3"),
        ({"phd_copies": 4, "phd_naive": True}, "naive-4"),
        (
            {"phd_copies": 2, "phd_naive": True, "phd_consecutive_positions": True},
            "naive-2-consecutive",
        ),
        ({"phd_copies": 2, "phd_copy_embedding": "vector"}, "PHD-CSWA-2-16-32+vector"),
        ({"attention_pattern": "longgen-sink"}, "longgen-sink"),
        ({"attention_pattern": "block-sparse"}, "block-sparse"),
        ({"attention_pattern": "1*sink,2*full,1*sink"}, "1sink-2full-1sink"),
        ({"phd_copies": 2, "attention_pattern": "longgen-block"}, "PHD-CSWA-2-16-32+longgen-block"),
        ({"phd_copies": 3, "phd_window": 1, "attention_pattern": "1*full,3*sink"}, "PHD-3+1full-3sink"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_variant(fields, name):
    assert str(PHDConfig(**fields).variant) == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phd_copies": 0}, "--phd-copies must be at least 1"),
        ({"phd_window": 0}, "--phd-window must be at least 1"),
        ({"phd_chunk": -1}, "--phd-chunk must be positive"),
        ({"phd_window": 33}, "--phd-window 33 reaches beyond --phd-chunk 32"),
        ({"phd_naive": True}, "--phd-naive repeats tokens"),
        ({"phd_consecutive_positions": True}, "--phd-consecutive-positions is of --phd-naive alone"),
        ({"phd_copy_embedding": "tables"}, "--phd-copy-embedding must be one of none, vector, table, got"),
        ({"phd_copy_embedding": "table"}, "--phd-copy-embedding table is of hidden copies"),
        ({"phd_attention_backend": "fast"}, "must be one of flash, reference, got 'fast'"),
        ({"phd_attention_backend": "auto"}, "got 'auto': flash is the default.*leave the flag out"),
        ({"phd_attention_backend": "flex"}, "got 'flex'.*benchmarks/gpu/attention.py; leave the flag out"),
        (
            {"attention_pattern": "sink", "phd_copies": 2, "phd_naive": True},
            "--attention-pattern does not run with --phd-naive",
        ),
        ({"attention_pattern": "longgen"}, "--attention-pattern: 'longgen' is no attention pattern"),
        ({"attention_pattern": "sink.0.1.2"}, "--attention-pattern: the pattern's block must be at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PHDConfig(**fields)


def test_rules_of_the_layers():
    sink = AttentionRule(Copies(2, 16, 32), Blocks(16, 1, 2))
    first, middle, last = PHDConfig(phd_copies=2, attention_pattern="longgen-sink.16.1.2").layers(3)
    assert first == last == sink
    assert middle == AttentionRule(Copies(2, 16, 32))


@pytest.mark.parametrize("text", ["2*sink,1*full", "3*full"])
def test_a_pattern_of_another_depth_is_refused(text):
    with pytest.raises(ValueError, match="^--attention-pattern: .*has 3 layers, the model 4"):
        PHDConfig(attention_pattern=text).layers(4)
    heads = "2full-1heads.1full.3sink"
    assert PHDConfig(attention_pattern=heads).layers(3, 4) == PHDConfig(attention_pattern=heads).layers(3)
    with pytest.raises(
        ValueError,
        match="^--attention-pattern: layer 3 of the attention pattern, heads.1full.3sink, is for 4 "
        "key/value heads, and the model has 8$",
    ):
        PHDConfig(attention_pattern=heads).layers(3, 8)

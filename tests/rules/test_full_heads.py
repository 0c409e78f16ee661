import json
import random
import statistics

import pytest

from phd.rules.full_heads import largest, read_gates, with_full_heads
from phd.rules.keys import Blocks, ByHead, Full
from phd.rules.pattern import LayerPattern

GATES = [[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.7, 0.6]]


@pytest.mark.parametrize(
    ("layers", "heads", "sparsity", "count"),
    [
        (32, 8, 0.5, 128),
        (32, 32, 0.75, 256),
        (32, 8, 0.0, 256),
        (32, 8, 1.0, 0),
        (2, 4, 0.9, 1),
        (11, 1, 0.7, 4),
    ],
)
def test_how_many_heads_are_kept(layers, heads, sparsity, count):
    """N - ceil(sparsity (N - 1)), of all layers together; 0.7 * 10 is 7, whatever floats make of it."""
    draw = random.Random(0)
    gates = [[draw.random() for _ in range(heads)] for _ in range(layers)]
    kept = largest(gates, 1 - sparsity)
    assert [len(row) for row in kept] == [heads] * layers and sum(map(sum, kept)) == count
    flat = [(gate, keeps) for row in zip(gates, kept, strict=True) for gate, keeps in zip(*row, strict=True)]
    if 0 < count < layers * heads:
        assert min(gate for gate, keeps in flat if keeps) > max(gate for gate, keeps in flat if not keeps)
    if sparsity == 0.5:  # the paper's code: gates at or above the quantile over all layers
        median = statistics.median(gate for gate, _ in flat)
        assert [keeps for _, keeps in flat] == [gate >= median for gate, _ in flat]


def test_equal_gates_are_kept_in_order():
    assert largest([[1.0, 1.0], [1.0, 1.0]], 0.5) == [[True, True], [False, False]]


def test_the_pattern():
    sink, full = Blocks(64, 1, 4), Full()
    layers = with_full_heads(LayerPattern.parse("sink.64.1.4"), GATES, 0.5, 2, 4).layers(2, 4)
    assert layers == (
        ByHead(((1, full), (3, sink))),
        ByHead(((1, sink), (3, full))),
    )
    # layers that are full stay so; a layer whose heads are alike has one rule
    assert (
        str(with_full_heads(LayerPattern.parse("1full-1sink"), GATES, 0.25, 2, 4))
        == "1full-1heads.1sink.1full.2sink"
    )
    assert with_full_heads(LayerPattern.parse("sink"), GATES, 0, 2, 4) == LayerPattern.parse("2sink")
    assert not with_full_heads(LayerPattern.parse("sink"), GATES, 1, 2, 4).sparse


@pytest.mark.parametrize(
    ("pattern", "share", "layers", "heads", "message"),
    [
        (
            "sink",
            0.5,
            3,
            4,
            "of 2 layers with 4 key/value heads, and the model has 3 layers with 4: take the",
        ),
        ("sink", 0.5, 2, 8, "of 2 layers with 4 key/value heads, and the model has 2 layers with 8"),
        ("sink", 1.5, 2, 4, "the share of full heads must be between 0 and 1, got 1.5"),
        ("full", 0.5, 2, 4, "the attention pattern full has none: write what the other heads keep"),
        ("heads.1full.3sink", 0.5, 2, 4, r"has heads that differ already \(heads.1full.3sink\)"),
    ],
)
def test_what_does_not_fit(pattern, share, layers, heads, message):
    with pytest.raises(ValueError, match=message):
        with_full_heads(LayerPattern.parse(pattern), GATES, share, layers, heads)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"gates": []}', '{"gates": [[]]}', '{"gates": [[1], [1, 2]]}', '{"gates": [["1"]]}']
    + ['{"gates": [[NaN]]}', '{"gates": [[true]]}', '{"gates": [1, 2]}', "no JSON"],
)
def test_files_without_gates(content, tmp_path):
    file = tmp_path / "gates.json"
    with pytest.raises(ValueError, match=r"gates.json cannot be read \(No such file or directory\)"):
        read_gates(file)
    file.write_text(content)
    with pytest.raises(ValueError, match="gates.json holds no gates: write|gates.json is not JSON"):
        read_gates(file)
    file.write_text(json.dumps({"gates": GATES, "made": "by hand"}))
    assert read_gates(file) == GATES

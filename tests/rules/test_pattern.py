import pytest

from phd.rules.keys import Blocks, ByHead, Full
from phd.rules.pattern import LayerPattern

SINK, STRIDED, FULL = Blocks(64, 1, 32), Blocks(64, 0, 1, 64), Full()


@pytest.mark.parametrize(("layers", "outer", "middle"), [(32, 10, 12), (80, 26, 28), (3, 1, 1)])
@pytest.mark.parametrize(("preset", "kind"), [("longgen-sink", SINK), ("longgen-block", STRIDED)])
def test_presets_are_sparse_in_the_outer_thirds(preset, kind, layers, outer, middle):
    expected = outer * [kind] + middle * [FULL] + outer * [kind]
    assert [*LayerPattern.parse(preset).layers(layers)] == expected


@pytest.mark.parametrize(
    ("text", "spelled", "layers"),
    [
        ("full", "full", [FULL, FULL, FULL]),
        ("sink", "sink", [SINK, SINK, SINK]),
        ("block-sparse", "block-sparse", [STRIDED, STRIDED, STRIDED]),
        ("1*sink,1*full,1*block-sparse", "1sink-1full-1block-sparse", [SINK, FULL, STRIDED]),
        ("full,2*sink", "1full-2sink", [FULL, SINK, SINK]),
        ("2*full, sink", "2full-1sink", [FULL, FULL, SINK]),
        ("sink,sink,full", "2sink-1full", [SINK, SINK, FULL]),
        ("3sink", "3sink", [SINK, SINK, SINK]),
        ("1sink.8.0.2-2sink", "1sink.8.0.2-2sink", [Blocks(8, 0, 2), SINK, SINK]),
        ("1sink.64.1.32-2block-sparse.64.64.1", "1sink-2block-sparse", [SINK, STRIDED, STRIDED]),
        ("blocks.8.1.2.3", "blocks.8.1.2.3", 3 * [Blocks(8, 1, 2, 3)]),
        ("longgen-sink.16.2.3", "longgen-sink.16.2.3", [Blocks(16, 2, 3), FULL, Blocks(16, 2, 3)]),
        ("heads.1full.1full.6sink", "heads.2full.6sink", 3 * [ByHead(((2, FULL), (6, SINK)))]),
        (
            "heads.1full.3block-sparse.8.4.1,1*heads.2sink.1.4.9.2full,full",
            "1heads.1full.3block-sparse.8.4.1-1heads.2sink.1.4.9.2full-1full",
            [ByHead(((1, FULL), (3, Blocks(8, 0, 1, 4)))), ByHead(((2, Blocks(1, 4, 9)), (2, FULL))), FULL],
        ),
        ("longgen-block.64.64.1", "longgen-block", [STRIDED, FULL, STRIDED]),
    ],
)
def test_texts(text, spelled, layers):
    pattern = LayerPattern.parse(text)
    assert str(pattern) == spelled
    assert LayerPattern.parse(spelled) == pattern
    assert [*pattern.layers(3)] == layers
    assert LayerPattern.of(tuple(layers)).layers(3) == tuple(layers)
    assert pattern.sparse is (layers != 3 * [FULL])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no attention pattern: write longgen-sink or longgen-block, one of full, sink"),
        ("dense", "'dense' is no attention pattern"),
        ("1*sink,2*dense", r"'1\*sink,2\*dense' is no attention pattern"),
        ("1*sink,,2*full", "is no attention pattern"),
        ("1*sink,2*full,", "is no attention pattern"),
        ("-1*sink,4*full", "is no attention pattern"),
        ("sink*3", "'sink3' is no rule of keys"),
        ("1*sink,longgen-sink", "is no attention pattern"),
        ("sink.1.2", "'sink.1.2' is no rule of keys"),
        ("longgen-sink.1", "'sink.1' is no rule of keys"),
        ("2sink.0.1.1", "the pattern's block must be at least 1, got 0"),
    ],
)
def test_texts_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        LayerPattern.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1*sink,1*full", "the attention pattern 1sink-1full has 2 layers, the model 3"),
        ("sink,2*full,sink", "has 4 layers, the model 3"),
        ("6*full", "the attention pattern 6full has 6 layers, the model 3"),
    ],
)
def test_another_depth(text, message):
    with pytest.raises(ValueError, match=message):
        LayerPattern.parse(text).layers(3)


def test_presets_need_three_layers():
    with pytest.raises(
        ValueError, match="longgen-sink has sparse layers around full ones: it needs 3 layers"
    ):
        LayerPattern.parse("longgen-sink").layers(2)


def test_arguments_of_older_runs():
    """A kind's numbers were arguments of their own; block sizes were common."""
    numbers = {"block": 16, "sink_blocks": 2, "local_blocks": 3, "stride": 4, "stride_local_blocks": 5}
    numbers = {f"attention_pattern_{name}": value for name, value in numbers.items()}

    def pattern(text):
        return str(LayerPattern.from_arguments(numbers | {"attention_pattern": text}))

    assert pattern("longgen-sink") == "longgen-sink.16.2.3"
    assert pattern("longgen-block") == "longgen-block.16.4.5"
    assert pattern("1*sink,1*full,2*block-sparse") == "1sink.16.2.3-1full-2block-sparse.16.4.5"
    assert pattern("full") == "full"
    assert pattern("sink.8.1.1") == "sink.8.1.1"
    assert str(LayerPattern.from_arguments({"attention_pattern": "longgen-sink"})) == "longgen-sink"
    assert str(LayerPattern.from_arguments({})) == "full"

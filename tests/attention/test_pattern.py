"""Sparse layers against LongGen's words (arXiv 2410.01485), blocks listed one by one."""

import pytest
import torch

from phd.attention.pattern import Pattern, describe_patterns, parse_patterns
from phd.attention.rule import dense_mask

LENGTHS = (1, 37, 64)
PATTERNS = [
    pytest.param(Pattern(block, sink, local, stride), id=f"block{block}-{sink}+{local}-stride{stride}")
    for block in (1, 4, 7)
    for sink, local, stride in (
        *((1, 1, None), (0, 1, None), (1, 3, None), (2, 2, None), (0, 4, None), (99, 1, None)),
        *((0, 1, 4), (0, 2, 3), (2, 1, 5), (0, 1, 1), (3, 2, 2)),
    )
]
RULES = [(1, 1, None), (2, 1, None), (3, 4, None), (3, 4, 8), (5, 16, 5)]
SINK, STRIDED = Pattern(64, 1, 32), Pattern(64, 0, 1, 64)
KINDS = {"sink": SINK, "block-sparse": STRIDED}


def kept_blocks(query_block: int, pattern: Pattern) -> set[int]:
    """Of the blocks up to the query's own: the sink, the most recent ones, and one of every ``stride``."""
    causal = set(range(query_block + 1))
    sink = set(range(pattern.sink))
    recent = {query_block - back for back in range(pattern.local)}
    strided = set() if pattern.stride is None else {n * pattern.stride for n in range(query_block + 1)}
    return causal & (sink | recent | strided)


def kept(position: int, pattern: Pattern) -> set[int]:
    """Positions of the kept blocks, up to the query's own within its block."""
    blocks = kept_blocks(position // pattern.block, pattern)
    return {
        key for block in blocks for key in range(block * pattern.block, (block + 1) * pattern.block)
    } & set(range(position + 1))


def originals(length: int, pattern: Pattern | None) -> torch.Tensor:
    """The mask of a model without copies, [s, s]."""
    return dense_mask(length, 1, window=1, chunk=None, pattern=pattern)[0, :, 0, :, 0]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_are_the_kept_blocks(pattern, length):
    mask = originals(length, pattern)
    for position, row in enumerate(mask):
        assert {*row.nonzero().flatten().tolist()} == kept(position, pattern)
    assert mask.diagonal().all() and not mask.triu(1).any()


def test_rows_of_longgen():
    """Its own numbers, by hand: 64 sink positions and 1985 to 2048 recent ones; every 4096th block of 64."""
    for position in (0, 63, 64, 2047, 2048, 2111, 2112, 4095, 4096, 9000):
        query, keys = torch.tensor(position), torch.arange(position + 1)
        window = (position // 64 - 31) * 64
        assert torch.equal(SINK.keeps(query, keys), (keys < 64) | (keys >= window))
        own = position // 64 * 64
        assert torch.equal(STRIDED.keeps(query, keys), (keys % 4096 < 64) | (keys >= own))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_short_sequences_are_full_attention(pattern):
    """As long as all blocks are sink or recent ones: exactly so long, without a stride."""
    length = (min(pattern.sink, 20) + pattern.local) * pattern.block
    causal = originals(length, None)
    assert torch.equal(originals(length, pattern), causal)
    if pattern.stride is None and pattern.sink < 20:
        assert not originals(length + 1, pattern)[-1].all()


def test_longgen_is_full_attention_up_to_2112():
    keys = torch.arange(2113)
    assert SINK.keeps(torch.tensor(2111), keys[:2112]).all()
    assert not SINK.keeps(torch.tensor(2112), keys).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_dropped_key_never_comes_back(pattern):
    mask = originals(75, pattern)
    for key in range(75):
        seen = mask[key:, key].int()
        assert (seen.diff() <= 0).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_window_start_far_blocks_and_kept_positions(pattern):
    for position in range(120):
        own = position // pattern.block
        recent = {block for block in range(own + 1) if own - block < pattern.local}
        start = pattern.window_start(position)
        assert start == min(recent) * pattern.block
        far = [*pattern.far_blocks(start // pattern.block)]
        assert far == sorted(kept_blocks(own, pattern) - recent)
        assert pattern.kept_positions(position) == len(kept(position, pattern))


def test_far_blocks_of_any_end():
    for pattern in (SINK, Pattern(4, 3, 1, 2), Pattern(4, 2, 1, 5), STRIDED):
        for end in range(150):
            always = {
                j for j in range(end) if j < pattern.sink or (pattern.stride and j % pattern.stride == 0)
            }
            assert [*pattern.far_blocks(end)] == sorted(always)


def test_both_kinds_keep_33_blocks_of_131072():
    for pattern in KINDS.values():
        assert pattern.kept_positions(131071) == 33 * 64


@pytest.mark.parametrize(("copies", "window", "chunk"), RULES)
@pytest.mark.parametrize("pattern", PATTERNS[:11])
def test_pattern_restricts_the_originals_of_all_copies_and_nothing_else(pattern, copies, window, chunk):
    full, sparse = (
        dense_mask(37, copies, window=window, chunk=chunk, pattern=which)[0] for which in (None, pattern)
    )  # [s, K, s, K]
    assert torch.equal(sparse[..., 1:], full[..., 1:])
    alone = originals(37, pattern)
    for copy in range(copies):
        assert torch.equal(sparse[:, copy, :, 0], alone)


@pytest.mark.parametrize(("copies", "window", "chunk"), RULES)
@pytest.mark.parametrize("pattern", PATTERNS[11:22])
def test_documents_see_what_each_would_alone(pattern, copies, window, chunk):
    """Blocks count from the document's start, and nothing before it is seen."""
    lengths = (5, 1, 20, 11)
    starts = torch.tensor([[0] * 5 + [5] + [6] * 20 + [26] * 11])
    rule = {"window": window, "chunk": chunk, "pattern": pattern}
    (packed,) = dense_mask(37, copies, document_starts=starts, **rule)
    begin = 0
    for length in lengths:
        rows = slice(begin, begin + length)
        assert torch.equal(packed[rows, :, rows], dense_mask(length, copies, **rule)[0])
        packed[rows, :, rows] = False
        begin += length
    assert not packed.any()


@pytest.mark.parametrize(
    ("name", "value"), [("block", 0), ("sink", -1), ("local", 0), ("stride", 0)], ids=lambda value: str(value)
)
def test_refused(name, value):
    with pytest.raises(ValueError, match=f"the pattern's {name} must be at least {value + 1}, got {value}"):
        Pattern(**{name: value})


@pytest.mark.parametrize(("layers", "outer", "middle"), [(32, 10, 12), (80, 26, 28), (3, 1, 1)])
@pytest.mark.parametrize(("preset", "kind"), [("longgen-sink", SINK), ("longgen-block", STRIDED)])
def test_presets_are_sparse_in_the_outer_thirds(preset, kind, layers, outer, middle):
    expected = outer * [kind] + middle * [None] + outer * [kind]
    assert [*parse_patterns(preset, layers, KINDS)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", [None, None, None]),
        ("sink", [SINK, SINK, SINK]),
        ("block-sparse", [STRIDED, STRIDED, STRIDED]),
        ("1*sink,1*full,1*block-sparse", [SINK, None, STRIDED]),
        ("full,2*sink", [None, SINK, SINK]),
        ("2*full, sink", [None, None, SINK]),
    ],
)
def test_lists(text, expected):
    assert [*parse_patterns(text, 3, KINDS)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no attention pattern: write longgen-sink, longgen-block, full, sink, block-sparse, or"),
        ("dense", "'dense' is no attention pattern"),
        ("1*sink,2*dense", r"'2\*dense' is no attention pattern"),
        ("1*sink,,2*full", "'' is no attention pattern"),
        ("-1*sink,4*full", r"'-1\*sink' is no attention pattern"),
        ("sink*3", r"'sink\*3' is no attention pattern"),
        ("1*sink,longgen-sink", "'longgen-sink' is no attention pattern"),
        ("1*sink,1*full", "has 2 layers, the model 3"),
        ("sink,2*full,sink", "has 4 layers, the model 3"),
    ],
)
def test_texts_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_patterns(text, 3, KINDS)


def test_description_groups_equal_layers():
    sink, strided = "sink(64: 1+32)", "block-sparse(64: 64+1)"
    assert describe_patterns(parse_patterns("longgen-sink", 32, KINDS)) == f"10*{sink},12*full,10*{sink}"
    assert describe_patterns(parse_patterns("1*sink,2*block-sparse", 3, KINDS)) == f"1*{sink},2*{strided}"
    assert describe_patterns([None, None]) == "2*full"
    assert describe_patterns([SINK, Pattern(64, 1, 16)]) == f"1*{sink},1*sink(64: 1+16)"

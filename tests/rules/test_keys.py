"""What every rule of keys promises, in integers: the predicate, its parts and what a cache holds are one
rule.
"""

import re

import pytest

from phd.rules.keys import DEFAULTS, KINDS, Blocks, ByHead, Full, Groups, parse_keys

LENGTH = 61
RULES = [
    Full(),
    *(
        Blocks(block, sink, local, stride)
        for block in (1, 4, 7)
        for sink, local, stride in (
            *((1, 1, None), (0, 1, None), (1, 3, None), (2, 2, None), (0, 4, None), (99, 1, None)),
            *((0, 1, 4), (0, 2, 3), (2, 1, 5), (0, 1, 1), (3, 2, 2)),
        )
    ),
    Blocks(),
    *(Groups(4), Groups(4, 3), Groups(7, 2), Groups(1), Groups(99, 30)),
    ByHead(((1, Full()), (3, Blocks(4, 1, 2)))),
    ByHead(((1, Blocks(1, 2, 5)), (1, Full()), (2, Blocks(7, 0, 2, 3)))),
    ByHead(((2, Groups(8)), (2, Groups(8, 4)))),
    ByHead(((1, Groups(8, 4)), (2, Blocks()), (1, Blocks(64, 0, 1, 64)))),
]
CUTS = [(0, LENGTH), (0, 1), (0, 8), (3, 40), (16, 48), (29, 30), (28, LENGTH), (50, LENGTH)]
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
HEADS = range(4)


def pairs_of(part):
    """(query, key) pairs of a part."""
    for number in range(part.count):
        first = part.begin + number * part.block
        for query in range(first, first + part.block):
            for key in (key + number * part.block for keys in part.keys for key in keys):
                if not part.causal or key <= query:
                    yield query, key


def heads_of(part):
    return HEADS[part.heads] if part.heads is not None else HEADS


@every_rule
def test_each_visible_pair_lies_in_one_part_with_its_rotation(rule):
    """As a rank or a prompt cuts the queries: anywhere."""
    seen = {
        (query, key, head): rule.rotation(query, key)
        for query in range(LENGTH)
        for key in range(query + 1)
        for head in HEADS
        if rule.keeps(query, key, head)
    }
    for begin, end in CUTS:
        found = {}
        for part in rule.parts(begin, end):
            assert begin <= part.begin < part.end <= end and (part.end - part.begin) % part.count == 0
            assert part.count == 1 or len(part.keys) == 1
            for head in heads_of(part):
                for pair in pairs_of(part):
                    assert (*pair, head) not in found, "twice"
                    found[*pair, head] = part.rotation
        assert found == {which: seen[which] for which in seen if begin <= which[0] < end}, (begin, end)


@every_rule
def test_each_query_is_in_one_causal_part_before_its_others(rule):
    causal = set()
    for part in rule.parts(5, LENGTH):
        queries = {(query, head) for query in range(part.begin, part.end) for head in heads_of(part)}
        assert part.causal is not bool(queries & causal)
        if part.causal:
            assert part.keys == (range(part.begin, part.begin + part.block),)
            causal |= queries
        else:
            assert queries <= causal
    assert causal == {(query, head) for query in range(5, LENGTH) for head in HEADS}


@every_rule
def test_nothing_later_is_kept(rule):
    for query in range(0, LENGTH, 5):
        assert not any(rule.keeps(query, key, head) for key in range(query + 1, LENGTH) for head in HEADS)
        assert rule.keeps(query, query)


@every_rule
def test_what_is_retained_is_what_later_queries_see(rule):
    """Over more queries than a group or a window has."""
    for length in (1, 3, 4, 5, 20, 28, 39, 40, 41):
        later = [
            key
            for key in range(length)
            if any(rule.keeps(query, key, head) for query in range(length, length + 200) for head in HEADS)
        ]
        assert [key for keys in rule.retained(length) for key in keys] == later, length
        alone = [rule.of_heads(head, head + 1) for head in HEADS]
        assert rule.held(length) == sum(keys.held(length) for keys in alone) / len(HEADS)


@every_rule
def test_some_heads_alone(rule):
    """As ranks hold them; and each slice has one rule for all of its heads."""
    for begin in HEADS:
        for end in HEADS[begin:]:
            alone = rule.of_heads(begin, end + 1)
            for head in range(begin, end + 1):
                assert alone.of_heads(head - begin, head - begin + 1) == rule.of_heads(head, head + 1)
                assert [rule.keeps(50, key, head) for key in range(51)] == [
                    alone.keeps(50, key, head - begin) for key in range(51)
                ]
    heads = [head for heads, _ in rule.by_head() for head in HEADS[heads]]
    assert heads == [*HEADS] and rule.heads in (None, len(HEADS))
    for heads, keys in rule.by_head():
        assert keys.heads is None and keys == rule.of_heads(HEADS[heads][0], HEADS[heads][-1] + 1)


@every_rule
def test_the_number_of_pairs(rule):
    """The mean over heads."""
    for length in (1, 4, 7, 32, 33, LENGTH):
        seen = sum(
            bool(rule.keeps(query, key, head))
            for query in range(length)
            for key in range(query + 1)
            for head in HEADS
        )
        assert rule.pairs(length) == seen / len(HEADS)


@every_rule
def test_a_rule_is_read_back(rule):
    assert parse_keys(str(rule)) == rule
    assert re.fullmatch(r"[a-z][a-z.-]*[\d.]*|heads(\.\d+[a-z-]+[\d.]*)+", str(rule))


def test_defaults_are_written_without_numbers():
    assert {kind: str(rule) for kind, rule in DEFAULTS.items()} == {kind: kind for kind in DEFAULTS}
    assert parse_keys("sink.64.1.32") == parse_keys("sink") == Blocks()
    assert parse_keys("block-sparse.16.4.2") == Blocks(16, 0, 2, 4)
    assert str(Blocks(16, 2, 3, 4)) == "blocks.16.2.3.4"


@pytest.mark.parametrize(
    "text",
    [
        *("", "dense", "sink.1", "sink.1.2.3.4", "sink.a.b.c", "blocks", "full.3", "sink."),
        *("heads", "heads.full", "heads.2full.", "heads.1full.2dense", "heads.1full-1sink"),
        "heads.1heads.1full.2sink",
    ],
)
def test_no_rule(text):
    with pytest.raises(ValueError, match=f"'{text}' is no rule of keys: write full, sink"):
        parse_keys(text)


@pytest.mark.parametrize(("name", "value"), [("block", 0), ("sink", -1), ("local", 0), ("stride", 0)])
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"the pattern's {name} must be at least {value + 1}, got {value}"):
        Blocks(**{name: value})


@pytest.mark.parametrize("numbers", [(0, 0), (4, 4), (4, -1)])
def test_groups_out_of_range(numbers):
    with pytest.raises(ValueError, match="groups need a size of at least 1 and a shift below it"):
        Groups(*numbers)


def test_slices_of_heads():
    sink, full = Blocks(64, 1, 4), Full()
    rule = ByHead(((1, full), (1, full), (6, sink)))
    assert rule == ByHead(((2, full), (6, sink))) == parse_keys("heads.2full.6sink.64.1.4")
    assert ByHead.join([(1, sink), (7, sink)]) == sink and ByHead.join(rule.slices) == rule
    assert str(ByHead(((1, Blocks(8, 0, 1, 4)), (2, sink)))) == "heads.1block-sparse.8.4.1.2sink.64.1.4"
    groups = ByHead(((1, Groups(8)), (1, Groups(8, 4)), (2, sink)))
    assert groups.trained_only and groups.outside_training == ByHead(((2, full), (2, sink)))
    assert not rule.trained_only and ByHead(((1, Groups(8)), (1, Groups(8, 4)))).outside_training == full
    with pytest.raises(ValueError, match="at least 1 head and a rule of all heads, got heads.0full.2sink"):
        ByHead(((0, full), (2, Blocks())))
    with pytest.raises(ValueError, match="got heads.1full.1heads.2full.6sink"):
        ByHead(((1, full), (1, rule)))
    with pytest.raises(ValueError, match="needs heads that differ, got heads.2full: write that rule alone"):
        ByHead(((1, full), (1, full)))


def test_every_kind_is_tried():
    assert {str(rule).partition(".")[0] for rule in RULES} == {*KINDS, "heads"}


def test_longgen_s_own_numbers():
    """64 sink positions and 1985 to 2048 recent ones; every 4096th position's block of 64. By hand."""
    sink, strided = DEFAULTS["sink"], DEFAULTS["block-sparse"]
    for query in (0, 63, 64, 2047, 2048, 2111, 2112, 4095, 4096, 9000):
        window, own = (query // 64 - 31) * 64, query // 64 * 64
        for key in range(query + 1):
            assert sink.keeps(query, key) == (key < 64 or key >= window)
            assert strided.keeps(query, key) == (key % 4096 < 64 or key >= own)


def test_both_kinds_keep_33_blocks_of_131072():
    for kind in ("sink", "block-sparse"):
        assert sum(map(len, DEFAULTS[kind].retained(131071))) + 1 == 33 * 64

"""Names that are read back, and costs: every quantity beside a count or the paper's number."""

import itertools
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from phd.rules.copies import Copies
from phd.rules.costs import Shape, dense_products
from phd.rules.keys import Blocks
from phd.rules.pattern import LayerPattern
from phd.rules.variant import COPY_EMBEDDINGS, Variant

NAIVE = [Copies(3, cached=True), Copies(3, cached=True, consecutive=True)]
COPIES = [Copies(), Copies(2), Copies(5, 16), Copies(2, 16, 32), *NAIVE]
PATTERNS = ["full", "longgen-sink", "longgen-block.16.4.5", "2sink-1full-2block-sparse.8.4.1", "sink.8.1.2"]
VARIANTS = [
    Variant(copies, LayerPattern.parse(text), embedding)
    for copies, text, embedding in itertools.product(COPIES, PATTERNS, COPY_EMBEDDINGS)
    if (not copies.cached or text == "full") and (copies.hidden or embedding == "none")
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_name_is_read_back_and_fits_folders_and_jobs(variant):
    assert Variant.parse(str(variant)) == variant
    assert re.fullmatch(r"[A-Za-z0-9.+-]+", str(variant))


def test_names_tell_apart_what_differs():
    assert len({str(variant) for variant in VARIANTS}) == len({*VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vanilla", {}),
        ("PHD-CSWA-2-16-32", {"phd_copies": 2, "phd_window": 16, "phd_chunk": 32}),
        ("PHD-SWA-5-16-inf", {"phd_copies": 5, "phd_window": 16, "phd_chunk": 0}),
        ("PHD-3", {"phd_copies": 3, "phd_window": 1, "phd_chunk": 32}),
        ("naive-4", {"phd_copies": 4, "phd_window": 16, "phd_chunk": 32, "phd_naive": True}),
        ("PHD-2+table", {"phd_copies": 2, "phd_copy_embedding": "table"}),
        (
            "naive-2-consecutive+table",
            {
                **{"phd_copies": 2, "phd_naive": True, "phd_consecutive_positions": True},
                "phd_copy_embedding": "table",
            },
        ),
        (
            "PHD-2+vector+longgen-sink",
            {"phd_copies": 2, "phd_copy_embedding": "vector", "attention_pattern": "longgen-sink"},
        ),
        ("longgen-sink", {"attention_pattern": "longgen-sink", "phd_copies": 1, "phd_window": 16}),
        ("block-sparse", {"attention_pattern": "block-sparse"}),
        ("1sink-2full-1sink", {"attention_pattern": "1*sink,2*full,1*sink"}),
        ("longgen-sink.16.1.32", {"attention_pattern": "longgen-sink", "attention_pattern_block": 16}),
        ("PHD-3+1full-3sink", {"phd_copies": 3, "phd_window": 1, "attention_pattern": "1*full,3*sink"}),
    ],
)
def test_of_the_arguments_of_a_run(name, arguments):
    variant = Variant.from_arguments(arguments)
    assert str(variant) == name
    assert variant == Variant.parse(name)


@pytest.mark.parametrize("name", ["4*full", "4full", "full"])
def test_full_layers_are_no_pattern(name):
    assert str(Variant(Copies(2), LayerPattern.parse(name))) == "PHD-2"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "'nonsense' names no variant: 'nonsense' is no attention pattern: write longgen-sink"),
        ("PHD-2+", "'PHD-2\\+' names no variant: '' is no attention pattern"),
        (
            "PHD-2+sink+sink",
            "write the copies, their embedding and one pattern, as in PHD-CSWA-2-16-32\\+vec",
        ),
        ("sink+PHD-2", "'sink' names no copies: write vanilla, naive-K"),
        ("naive-2+sink", "naive repetition has full layers alone"),
        ("PHD-0", "copies must be at least 1, got 0"),
        ("vanilla+vector", "a copy embedding is of hidden copies: it needs at least 2 copies"),
        ("PHD-2+longgen-sink+vector", "'PHD-2\\+longgen-sink\\+vector' names no variant: write the copies"),
        ("PHD-2-consecutive", "'PHD-2-consecutive' names no copies"),
    ],
)
def test_no_name(name, message):
    with pytest.raises(ValueError, match=message):
        Variant.parse(name)


def test_labels_of_long_names():
    """For W&B: names of which each layer has its own heads differ at their end."""
    assert Variant.parse("PHD-2+longgen-sink").label == "PHD-2+longgen-sink"
    heads = "-".join(f"1heads.{count}full.{8 - count}sink.64.1.5" for count in (1, 2, 3, 4, 5))
    labels = {Variant.parse(f"{heads}-{last}").label for last in ("1full", "1heads.1full.7sink", "1sink")}
    assert len(labels) == 3 and all(len(label) <= 100 and label.startswith(heads[:80]) for label in labels)


def test_layers_bind_a_depth():
    first, middle, last = Variant.parse("PHD-2+longgen-sink").layers(3)
    assert first == last and first.keys == Blocks() and first.copies == middle.copies == Copies(2)
    with pytest.raises(ValueError, match="has 4 layers, the model 3"):
        Variant.parse("2sink-2full").layers(3)


def test_the_standard_library_is_enough():
    """Shell scripts ask for names, and `phd compare` starts at once."""
    program = "import sys, phd.rules.variant; print({'torch', 'megatron', 'numpy'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


LONG = 131072
# Llama-2 7B, which LongGen makes a hybrid of
LLAMA_7B = Shape(
    hidden_size=4096,
    num_attention_heads=32,
    num_query_groups=32,
    kv_channels=128,
    vocab_size=32000,
    mlp_products=[dense_products(4096, 11008, True)] * 32,
)
ONE = Shape(
    hidden_size=1, num_attention_heads=1, num_query_groups=1, kv_channels=1, vocab_size=1, mlp_products=[1]
)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("longgen-sink", 0.394, 0.396), ("longgen-block", 0.384, 0.386)]
)
def test_longgen_attention_flops(name, least, most):
    """Its 12 full layers of 32 alone are 37.5%; with the sparse ones 39.5% at 131072 tokens."""
    hybrid, full = (
        sum(rule.visible_pairs(LONG) for rule in Variant.parse(which).layers(32))
        for which in (name, "vanilla")
    )
    assert least < hybrid / full < most


def test_longgen_flops_of_the_whole_model():
    """7B at 131072 tokens: 1.8 times fewer, which is what LongGen's 1.55 times shorter training aims at."""
    full, hybrid = (
        Variant.parse(name).flops_per_token(LLAMA_7B, LONG) for name in ("vanilla", "longgen-sink")
    )
    assert full / hybrid == pytest.approx(1.8, abs=0.05)


@pytest.mark.parametrize("name", ["longgen-sink", "longgen-block"])
def test_longgen_kv_cache(name):
    """The paper: 69.2 -> 26.5 GB at 128K, 62% less. Bytes of 131072 positions, bf16."""
    full, hybrid = (Variant.parse(which).kv_cache_bytes(LLAMA_7B, LONG, 2) for which in ("vanilla", name))
    assert full == 64 * 2**30
    assert hybrid / full == pytest.approx(0.385, abs=5e-4)


# Llama-3 8B, and Llama-2 7B's heads: DuoAttention's models
LLAMA_8B = replace(LLAMA_7B, num_query_groups=8)


@pytest.mark.parametrize(
    ("shape", "keys", "length", "share"),
    [
        # a quarter of the heads whole, the rest a sink of 64 and 256 recent positions
        pytest.param(LLAMA_7B, "heads.8full.24sink.1.64.256", 32000, 0.2575, id="tokens"),
        pytest.param(LLAMA_7B, "heads.8full.24sink.64.1.5", 32000, 0.2575, id="blocks-at-a-border"),
        pytest.param(LLAMA_7B, "heads.8full.24sink.64.1.5", 32063, 0.2590, id="blocks-at-most"),
        pytest.param(LLAMA_8B, "heads.4full.4sink.1.64.256", 1 << 20, 0.5002, id="half-at-1M"),
    ],
)
def test_kv_cache_of_some_full_heads(shape, keys, length, share):
    """DuoAttention: share + (1 - share) (sink + recent) / length of what all heads would hold."""
    full, some = (Variant.parse(name).kv_cache_bytes(shape, length, 2) for name in ("vanilla", keys))
    assert some / full == pytest.approx(share, abs=5e-5)


def test_costs_by_head_are_means():
    """Pairs of shifted groups at 32768 tokens: 0.2344 of causal attention's (LongLoRA's quarter of them)."""
    full, halves = (
        Variant.parse(name).layers(32)[0] for name in ("vanilla", "heads.16groups.8192.0.16groups.8192.4096")
    )
    assert halves.visible_pairs(32768) / full.visible_pairs(32768) == pytest.approx(0.2344, abs=5e-5)
    flops = {
        name: Variant.parse(name).flops_per_token(LLAMA_7B, 32768)
        for name in ("vanilla", "sink.64.1.5", "heads.8full.24sink.64.1.5", "heads.24sink.64.1.5.8full")
    }
    full, sink, *some = flops.values()
    assert some == pytest.approx([(full + 3 * sink) / 4] * 2, rel=1e-12)
    with pytest.raises(ValueError, match="is for 32 key/value heads, and the model has 8"):
        Variant.parse("heads.8full.24sink").flops_per_token(LLAMA_8B, 32768)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("vanilla", 100),
        ("PHD-5", 100),
        ("PHD-SWA-5-16-inf", 100 + 15 * 4),
        pytest.param("PHD-CSWA-5-16-32", 100 + 4 * 4, id="4-into-the-chunk"),
        pytest.param("PHD-CSWA-5-16-50", 100, id="at-a-chunk's-end"),
        ("naive-5", 500),
    ],
)
def test_kv_cache_entries(name, entries):
    assert Variant.parse(name).kv_cache_bytes(ONE, 100, 1) == 2 * entries


def test_outside_training():
    """Groups are full there, for caches too; the pattern lists its layers."""
    variant = Variant.parse("PHD-2+1groups.4.2-2sink")
    assert str(variant.outside_training(3)) == "PHD-2+1full-2sink"
    assert str(Variant.parse("longgen-sink").outside_training(3)) == "1sink-1full-1sink"
    assert Variant.parse("groups.4.2").outside_training(3) == Variant()
    assert Variant.parse("groups.4.2").kv_cache_bytes(ONE, 100, 1) == Variant().kv_cache_bytes(ONE, 100, 1)


def test_a_pattern_of_another_depth_has_no_costs():
    with pytest.raises(ValueError, match="has 2 layers, the model 1"):
        Variant.parse("1sink-1full").kv_cache_bytes(ONE, 100, 1)

import math
import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from torch.utils.flop_counter import FlopCounterMode

from phd.accounting import (
    context_parallel_elements,
    flops_per_token,
    kv_cache_bytes,
    mfu,
    peak_flops,
    visible_pairs,
)
from phd.attention import naive_attention, phd_attention
from phd.attention.pattern import Pattern
from phd.attention.rule import can_see, can_see_naive
from phd.config import PHDConfig

RULES = [
    pytest.param({}, id="vanilla"),
    pytest.param({"copies": 3, "window": 1}, id="PHD-3"),
    pytest.param({"copies": 2, "window": 4}, id="PHD-SWA-2-4"),
    pytest.param({"copies": 5, "window": 16, "chunk": 32}, id="PHD-CSWA-5-16-32"),
    pytest.param({"copies": 3, "window": 4, "chunk": 8}, id="PHD-CSWA-3-4-8"),
    pytest.param({"copies": 2, "window": 16, "chunk": 5}, id="window-beyond-chunk"),
    pytest.param({"copies": 3, "naive": True}, id="naive-3"),
]
PATTERNS = [
    pytest.param(Pattern(block, sink, local, stride), id=f"{block}-{sink}-{local}-{stride}")
    for block, sink, local, stride in (
        *((1, 1, 1, None), (4, 0, 2, None), (4, 1, 2, None), (5, 2, 3, None), (8, 1, 32, None)),
        *((1, 0, 1, 3), (4, 0, 1, 3), (4, 2, 2, 5), (7, 0, 1, 1), (3, 99, 1, None)),
    )
]
# Llama-2 7B, which LongGen makes a hybrid of: 10 sparse, 12 full and 10 sparse layers
LLAMA_7B = {"num_layers": 32, "num_query_groups": 32, "kv_channels": 128}
LONG = 131072


def longgen(preset):
    return PHDConfig(attention_pattern=preset).patterns(32)


def count_pairs(seq_length, copies=1, window=1, chunk=None, naive=False, pattern=None, last_copy_only=False):
    """Sum of the rule's predicate over all queries and keys."""
    position = torch.arange(seq_length).repeat_interleave(copies)
    copy = torch.arange(copies).repeat(seq_length)
    pairs = (position[:, None], copy[:, None], position, copy)
    seen = can_see_naive(*pairs) if naive else can_see(*pairs, window=window, chunk=chunk, pattern=pattern)
    return int((seen[copies - 1 :: copies] if last_copy_only else seen).sum())


@pytest.mark.parametrize("seq_length", [1, 7, 32, 33, 75])
@pytest.mark.parametrize("last_copy_only", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_visible_pairs_equal_the_rule(rule, last_copy_only, seq_length):
    rule = rule | {"last_copy_only": last_copy_only}
    assert visible_pairs(seq_length, **rule) == count_pairs(seq_length, **rule)


@pytest.mark.parametrize("last_copy_only", [False, True])
@pytest.mark.parametrize("rule", [{}, {"copies": 3, "window": 4, "chunk": 8}], ids=["vanilla", "PHD-CSWA"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_visible_pairs_of_a_sparse_layer_equal_the_rule(pattern, rule, last_copy_only):
    rule = rule | {"pattern": pattern, "last_copy_only": last_copy_only}
    for seq_length in (1, 4, 7, 32, 33, 75):
        assert visible_pairs(seq_length, **rule) == count_pairs(seq_length, **rule)


def test_pairs_of_long_sequences_take_no_time():
    """Every block is looked at once at most; 50 ms is much, on a busy machine."""
    begin = time.perf_counter()
    for pattern in (Pattern(), Pattern(sink=0, local=1, stride=64), Pattern(block=16, sink=64, stride=3)):
        visible_pairs(LONG, pattern=pattern)
    assert time.perf_counter() - begin < 0.05


@pytest.mark.parametrize(
    ("preset", "least", "most"), [("longgen-sink", 0.394, 0.396), ("longgen-block", 0.384, 0.386)]
)
def test_longgen_attention_flops(preset, least, most):
    """Its 12 full layers of 32 alone are 37.5%; with the sparse ones 39.5% at 131072 tokens."""
    pairs = sum(visible_pairs(LONG, pattern=pattern) for pattern in longgen(preset))
    assert least < pairs / (32 * visible_pairs(LONG)) < most


class Layer(nn.Module):
    """Attention, and SwiGLU or a plain MLP, of biasless linears; no norms, as they multiply no matrices."""

    def __init__(self, hidden, ffn, heads, groups, channels, gated):
        super().__init__()
        self.sizes = (heads, groups, channels)
        self.qkv = nn.Linear(hidden, (heads + 2 * groups) * channels, bias=False)
        self.proj = nn.Linear(heads * channels, hidden, bias=False)
        self.gated = gated
        self.fc1 = nn.Linear(hidden, ffn * (2 if gated else 1), bias=False)
        self.fc2 = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor, attend, pruned_copies: int = 1) -> Tensor:  # [s, b*K, h]
        heads, groups, channels = self.sizes
        qkv = self.qkv(x).unflatten(-1, (-1, channels))
        query, key, value = qkv.split((heads, groups, groups), dim=2)
        context = attend(query, key, value, last=pruned_copies > 1).flatten(2)
        x = x[:, pruned_copies - 1 :: pruned_copies] + self.proj(context)
        y = self.fc1(x)
        if self.gated:
            gate, y = y.chunk(2, dim=-1)
            y = silu(gate) * y
        return x + self.fc2(y)


@pytest.mark.parametrize("gated", [True, False], ids=["swiglu", "plain-mlp"])
@pytest.mark.parametrize("pruned", [True, False], ids=["pruned", "whole"])
@pytest.mark.parametrize("rule", RULES)
def test_flops_equal_counted_operations(rule, pruned, gated):
    """The counter sees the dense reference multiply all (K s)^2 pairs; the formula has the visible ones."""
    seq_length, batch, vocab_size, layers, hidden = 19, 2, 50, 2, 24
    sizes = {"ffn": 40, "heads": 4, "groups": 2, "channels": 8}
    copies = rule.get("copies", 1)
    if rule.get("naive"):

        def attend(*qkv, last):
            return naive_attention(*qkv, copies=copies, last_copy_only=last, backend="reference")
    else:

        def attend(*qkv, last):
            window, chunk = rule.get("window", 1), rule.get("chunk")
            return phd_attention(
                *qkv, copies=copies, window=window, chunk=chunk, last_copy_only=last, backend="reference"
            )

    torch.manual_seed(0)
    model = nn.ModuleList(Layer(hidden, gated=gated, **sizes) for _ in range(layers))
    embedding = nn.Parameter(torch.randn(vocab_size, hidden))
    tokens = torch.randint(vocab_size, (seq_length, batch))
    with FlopCounterMode(display=False) as counter:
        x = embedding[tokens].repeat_interleave(copies, dim=1)
        for number, layer in enumerate(model):
            x = layer(x, attend, copies if pruned and number == layers - 1 else 1)
        logits = linear(x if pruned else x[:, copies - 1 :: copies], embedding)
        logits.square().sum().backward()

    formula = flops_per_token(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=sizes["ffn"],
        num_attention_heads=sizes["heads"],
        num_query_groups=sizes["groups"],
        kv_channels=sizes["channels"],
        vocab_size=vocab_size,
        seq_length=seq_length,
        gated_linear_unit=gated,
        prune_last_layer=pruned,
        **rule,
    )
    invisible = layers * ((copies * seq_length) ** 2 - count_pairs(seq_length, **rule))
    if pruned and not rule.get("naive"):
        # counted: the last copy's queries with all keys; visible: fewer
        invisible += copies * seq_length**2 - count_pairs(seq_length, **rule, last_copy_only=True)
        invisible -= (copies * seq_length) ** 2 - count_pairs(seq_length, **rule)
    uncounted = 12 * sizes["heads"] * sizes["channels"] * invisible
    assert math.isclose(
        formula * seq_length * batch, counter.get_total_flops() - batch * uncounted, rel_tol=1e-12
    )


SMALL = {
    **{"num_layers": 5, "hidden_size": 24, "ffn_hidden_size": 40, "num_attention_heads": 4},
    **{"num_query_groups": 2, "kv_channels": 8, "vocab_size": 50, "gated_linear_unit": True},
}


@pytest.mark.parametrize("pruned", [True, False], ids=["pruned", "whole"])
@pytest.mark.parametrize("rule", [{}, {"copies": 3, "window": 4, "chunk": 8}], ids=["vanilla", "PHD-CSWA"])
def test_flops_of_sparse_layers(rule, pruned):
    """Each layer is spared the pairs that its pattern drops, the pruned last one those of its last copy."""
    sink, strided = Pattern(4, 1, 2), Pattern(4, 0, 1, 3)
    patterns = [sink, None, None, strided, sink]
    sizes = SMALL | {"seq_length": 75, "prune_last_layer": pruned}
    spared = flops_per_token(**sizes, **rule) - flops_per_token(**sizes, **rule, patterns=patterns)
    dropped = 0
    for number, pattern in enumerate(patterns):
        last = {"last_copy_only": pruned and number == 4}
        dropped += count_pairs(75, **rule, **last) - count_pairs(75, **rule, **last, pattern=pattern)
    assert dropped > 0
    assert spared == pytest.approx(12 * 4 * 8 * dropped / 75, rel=1e-12)


def test_longgen_flops_of_the_whole_model():
    """7B at 131072 tokens: 1.8 times fewer, which is what LongGen's 1.55 times shorter training aims at."""
    sizes = LLAMA_7B | {"hidden_size": 4096, "ffn_hidden_size": 11008, "num_attention_heads": 32}
    sizes |= {"vocab_size": 32000, "seq_length": LONG, "gated_linear_unit": True}
    full = flops_per_token(**sizes)
    hybrid = flops_per_token(**sizes, patterns=longgen("longgen-sink"))
    assert full / hybrid == pytest.approx(1.8, abs=0.05)


@pytest.mark.parametrize("rule", [{}, {"copies": 3, "window": 4, "chunk": 8}], ids=["vanilla", "PHD-CSWA"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_kv_cache_of_a_sparse_layer_is_all_that_later_queries_see(pattern, rule):
    """Of the originals: what any of the next 200 positions sees. Of the hidden copies as ever."""
    sizes = {"num_query_groups": 2, "kv_channels": 8, "bytes_per_element": 2}
    entry = 2 * 2 * 8 * 2
    zero = torch.tensor(0)
    for t in (1, 3, 4, 5, 8, 20, 39, 40, 41, 75):
        later, earlier = torch.arange(t, t + 200)[:, None], torch.arange(t)
        seen = can_see(later, zero, earlier, zero, window=1, chunk=None, pattern=pattern).any(dim=0)
        full = kv_cache_bytes(t, num_layers=1, **sizes, **rule)
        sparse = kv_cache_bytes(t, num_layers=1, **sizes, **rule, patterns=[pattern])
        assert full - sparse == entry * (t - int(seen.sum()))
        hybrid = kv_cache_bytes(t, num_layers=3, **sizes, **rule, patterns=[pattern, None, pattern])
        assert hybrid == full + 2 * sparse


@pytest.mark.parametrize("preset", ["longgen-sink", "longgen-block"])
def test_longgen_kv_cache(preset):
    """The paper: 69.2 -> 26.5 GB at 128K, 62% less. Bytes of 131072 positions, bf16."""
    sizes = LLAMA_7B | {"bytes_per_element": 2}
    full, hybrid = (kv_cache_bytes(LONG, **sizes, patterns=patterns) for patterns in (None, longgen(preset)))
    assert full == 64 * 2**30
    assert hybrid / full == pytest.approx(0.385, abs=5e-4)


def test_patterns_must_fit():
    sizes = {"num_query_groups": 1, "kv_channels": 1, "bytes_per_element": 1}
    naive = {"copies": 2, "naive": True}
    with pytest.raises(ValueError, match="patterns must be one for each of 2 layers, got 1"):
        kv_cache_bytes(9, num_layers=2, **sizes, patterns=[Pattern()])
    with pytest.raises(ValueError, match="patterns must be one for each of 5 layers, got 2"):
        flops_per_token(**SMALL, seq_length=9, patterns=[None, None])
    with pytest.raises(ValueError, match="naive repetition has no pattern"):
        visible_pairs(9, **naive, pattern=Pattern())
    with pytest.raises(ValueError, match="naive repetition has no pattern"):
        kv_cache_bytes(9, num_layers=2, **sizes, **naive, patterns=[None, Pattern()])
    with pytest.raises(ValueError, match="naive repetition has no pattern"):
        flops_per_token(**SMALL, seq_length=9, **naive, patterns=[None, None, Pattern(), None, None])
    with pytest.raises(ValueError, match="naive repetition has no pattern"):
        traffic(64, 2, Pattern(), **naive)


def traffic(length, ranks, pattern, comm_type="p2p", **rule):
    heads = {"num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 8}
    return context_parallel_elements(
        length, ranks=ranks, comm_type=comm_type, **heads, pattern=pattern, **rule
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_context_parallel_fetches_what_the_queries_keep(pattern, ranks):
    """Brute force: the keys that the rank's queries see, less those that lie on it."""
    zero = torch.tensor(0)
    for rows in (1, 5, 12, 16):
        position = torch.arange(2 * ranks * rows)
        seen = can_see(position[:, None], zero, position, zero, window=1, chunk=None, pattern=pattern)
        fetched = 0
        for rank in range(ranks):
            held = (position // rows == rank) | (position // rows == 2 * ranks - 1 - rank)
            fetched += int((seen[held].any(dim=0) & ~held).sum())
        for comm_type in ("p2p", "all_gather"):
            sent = traffic(len(position), ranks, pattern, comm_type)
            assert sent.forward == fetched * 2 * 2 * 8
            assert sent.backward == 2 * sent.forward


def test_context_parallel_halos_and_a2a_do_not_know_the_pattern():
    rule = {"copies": 3, "window": 4, "chunk": None}
    pattern = Pattern(8, 1, 2)
    halo = traffic(256, 4, pattern, **rule).forward - traffic(256, 4, pattern).forward
    assert halo == traffic(256, 4, None, **rule).forward - traffic(256, 4, None).forward > 0
    assert traffic(256, 4, pattern, "a2a", **rule) == traffic(256, 4, None, "a2a", **rule)


def test_context_parallel_of_longgen_sends_a_fraction():
    """The 2K tokens that a slice keeps, and few more, instead of the seven eighths that others hold."""
    sparse, full = traffic(LONG, 8, Pattern()), traffic(LONG, 8, None)
    assert sparse.forward < 0.04 * full.forward


def test_kv_cache_of_hidden_copies_follows_the_rule():
    """The cache after t positions holds what the hidden copies of position t can see of earlier positions."""
    sizes = {"num_layers": 3, "num_query_groups": 2, "kv_channels": 8, "bytes_per_element": 2}
    entry = 2 * 3 * 2 * 8 * 2
    copies = torch.arange(4)
    for window in (1, 4, 16):
        for chunk in (None, 8, 32):
            for t in range(1, 70):
                earlier = torch.arange(t)[:, None]
                seen = can_see(torch.tensor(t), copies[-1], earlier, copies, window=window, chunk=chunk)
                cached = kv_cache_bytes(t, copies=4, window=window, chunk=chunk, **sizes)
                assert cached == entry * int(seen.sum()), (window, chunk, t)


@pytest.mark.parametrize(
    ("rule", "entries"),
    [
        pytest.param({}, 100, id="vanilla"),
        pytest.param({"copies": 5, "window": 1}, 100, id="PHD-5"),
        pytest.param({"copies": 5, "window": 16}, 100 + 15 * 4, id="PHD-SWA-5-16"),
        pytest.param({"copies": 5, "window": 16, "chunk": 32}, 100 + 4 * 4, id="4-into-the-chunk"),
        pytest.param({"copies": 5, "window": 16, "chunk": 50}, 100, id="at-a-chunk's-end"),
        pytest.param({"copies": 5, "naive": True}, 500, id="naive-5"),
    ],
)
def test_kv_cache_entries(rule, entries):
    one = {"num_layers": 1, "num_query_groups": 1, "kv_channels": 1, "bytes_per_element": 1}
    assert kv_cache_bytes(100, **one, **rule) == 2 * entries


@pytest.mark.parametrize("name", ["copies", "window", "chunk", "seq_length"])
def test_bad_rule(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        visible_pairs(**({"seq_length": 4, "copies": 2, "window": 1} | {name: 0}))


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756.5e12),
        ("NVIDIA H200", "fp8", 2 * 989.4e12),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp8", None),
        ("NVIDIA GB200", "bf16", 2.5e15),
        ("NVIDIA GH200 480GB", "bf16", 989.4e12),
        ("cpu", "bf16", None),
    ],
)
def test_peak_flops(device, precision, peak):
    assert peak_flops(device, precision) == peak


def test_mfu():
    assert mfu(tokens_per_second=2e4, flops_per_token=1e10, peak_flops=1e15) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="peak_flops must be positive"):
        mfu(tokens_per_second=1.0, flops_per_token=1.0, peak_flops=0)

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from torch.utils.flop_counter import FlopCounterMode

from phd.accounting import flops_per_token, kv_cache_bytes, mfu, peak_flops, visible_pairs
from phd.attention import naive_attention, phd_attention
from phd.attention.rule import can_see, can_see_naive

RULES = [
    pytest.param({}, id="vanilla"),
    pytest.param({"copies": 3, "window": 1}, id="PHD-3"),
    pytest.param({"copies": 2, "window": 4}, id="PHD-SWA-2-4"),
    pytest.param({"copies": 5, "window": 16, "chunk": 32}, id="PHD-CSWA-5-16-32"),
    pytest.param({"copies": 3, "window": 4, "chunk": 8}, id="PHD-CSWA-3-4-8"),
    pytest.param({"copies": 2, "window": 16, "chunk": 5}, id="window-beyond-chunk"),
    pytest.param({"copies": 3, "naive": True}, id="naive-3"),
]


def count_pairs(seq_length, copies=1, window=1, chunk=None, naive=False, last_copy_only=False):
    """Sum of the rule's predicate over all queries and keys."""
    position = torch.arange(seq_length).repeat_interleave(copies)
    copy = torch.arange(copies).repeat(seq_length)
    pairs = (position[:, None], copy[:, None], position, copy)
    seen = can_see_naive(*pairs) if naive else can_see(*pairs, window=window, chunk=chunk)
    return int((seen[copies - 1 :: copies] if last_copy_only else seen).sum())


@pytest.mark.parametrize("seq_length", [1, 7, 32, 33, 75])
@pytest.mark.parametrize("last_copy_only", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_visible_pairs_equal_the_rule(rule, last_copy_only, seq_length):
    rule = rule | {"last_copy_only": last_copy_only}
    assert visible_pairs(seq_length, **rule) == count_pairs(seq_length, **rule)


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

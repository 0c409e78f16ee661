"""FLOPs by formula against the operations that a model's forward and backward really do."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from torch.utils.flop_counter import FlopCounterMode

from phd.attention.reference import dense_mask
from phd.rules.costs import Shape, dense_products
from phd.rules.variant import LINEAR_LAYERS, Variant
from tests.attention.calls import attend

NAMES = [
    "vanilla",
    "PHD-3",
    "PHD-SWA-2-4-inf",
    "PHD-CSWA-5-16-32",
    "PHD-CSWA-3-4-8",
    "PHD-CSWA-2-5-5",
    "naive-3",
]
NAMES += ["sink.4.1.2", "PHD-CSWA-3-4-8+block-sparse.4.3.1"]


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
@pytest.mark.parametrize("name", NAMES)
def test_flops_equal_counted_operations(name, pruned, gated):
    """The counter sees the dense reference multiply all (K s)^2 pairs; the formula has the visible ones."""
    variant = Variant.parse(name)
    seq_length, batch, vocab_size, layers, hidden = 19, 2, 50, 2, 24
    sizes = {"ffn": 40, "heads": 4, "groups": 2, "channels": 8}
    (rule,) = variant.layers(1)
    copies = rule.copies.count

    def attention(*qkv, last):
        return attend(*qkv, rule, last_copy_only=last, backend="reference")

    torch.manual_seed(0)
    model = nn.ModuleList(Layer(hidden, gated=gated, **sizes) for _ in range(layers))
    embedding = nn.Parameter(torch.randn(vocab_size, hidden))
    tokens = torch.randint(vocab_size, (seq_length, batch))
    with FlopCounterMode(display=False) as counter:
        x = embedding[tokens].repeat_interleave(copies, dim=1)
        for number, layer in enumerate(model):
            x = layer(x, attention, copies if pruned and number == layers - 1 else 1)
        logits = linear(x if pruned else x[:, copies - 1 :: copies], embedding)
        logits.square().sum().backward()

    shape = Shape(
        hidden_size=hidden,
        num_attention_heads=sizes["heads"],
        num_query_groups=sizes["groups"],
        kv_channels=sizes["channels"],
        vocab_size=vocab_size,
        mlp_products=[dense_products(hidden, sizes["ffn"], gated)] * layers,
    )
    formula = variant.flops_per_token(shape, seq_length, prune_last_layer=pruned)
    mask = dense_mask(rule, seq_length)
    invisible = layers * int((~mask).sum())
    if pruned and not rule.copies.cached:
        # counted: the last copy's queries with all keys; visible: fewer
        invisible += int((~mask[:, :, -1]).sum()) - int((~mask).sum())
    uncounted = 12 * sizes["heads"] * sizes["channels"] * invisible
    assert math.isclose(
        formula * seq_length * batch, counter.get_total_flops() - batch * uncounted, rel_tol=1e-12
    )


class Adapted(nn.Module):
    """A frozen linear layer with LoRA beside it, of a pair of linears for each part of its output."""

    def __init__(self, base: nn.Linear, rank: int, parts: tuple[int, ...]):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.low = nn.Linear(base.in_features, rank * len(parts), bias=False)
        self.high = nn.ModuleList(nn.Linear(rank, size, bias=False) for size in parts)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x).chunk(len(self.high), dim=-1)
        return self.base(x) + torch.cat([up(each) for up, each in zip(self.high, low, strict=True)], dim=-1)


def test_flops_of_adapters_on_frozen_weights():
    """Backward computes one product of a frozen weight, that of its input's gradient."""
    variant, rank = Variant.parse("PHD-CSWA-3-4-8"), 3
    seq_length, batch, vocab_size, hidden, ffn, heads, groups, channels = 19, 2, 50, 24, 40, 4, 2, 8
    (rule,) = variant.layers(1)
    layer = Layer(hidden, ffn, heads, groups, channels, True).requires_grad_(False)
    layer.qkv = Adapted(layer.qkv, rank, (heads * channels, groups * channels, groups * channels))
    layer.proj = Adapted(layer.proj, rank, (hidden,))
    head = torch.randn(vocab_size, hidden)
    x = torch.randn(seq_length, batch * 3, hidden, requires_grad=True)

    def attention(*qkv, last):
        return attend(*qkv, rule, last_copy_only=last, backend="reference")

    with FlopCounterMode(display=False) as counter:
        linear(layer(x, attention, 3), head).square().sum().backward()
    shape = Shape(
        hidden_size=hidden, num_attention_heads=heads, num_query_groups=groups, kv_channels=channels,
        vocab_size=vocab_size, mlp_products=[dense_products(hidden, ffn, True)], lora_rank=rank,
    )  # fmt: skip
    formula = variant.flops_per_token(shape, seq_length, prune_last_layer=True, frozen=LINEAR_LAYERS)
    uncounted = 12 * heads * channels * int((~dense_mask(rule, seq_length)[:, :, -1]).sum())
    assert formula * seq_length * batch == counter.get_total_flops() - batch * uncounted
    adapters = [p for p in layer.parameters() if p.requires_grad]
    assert sum(shape.adapters) == sum(p.numel() for p in adapters)

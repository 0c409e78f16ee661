"""One cell of the table: an arm is trained on a task with a seed, and its accuracy measured.

Legend: b samples, n positions with a label, v vocabulary.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.probe.tasks import Task
from phd.hf import PHDLlamaConfig, PHDLlamaForCausalLM
from phd.rules.costs import Shape, dense_products
from phd.rules.variant import Variant

HEAD = 16
"""Size of one head."""
FLOAT = 4
"""Bytes of an element of the cache: all is fp32."""
HELD_OUT_SEED, HELD_OUT_SAMPLES = 4095, 2048
"""Of the set that accuracy is measured on, the same for every arm and seed; no training has this seed."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model of the table. The feed-forward layer is twice as wide as the model, heads are of 16."""

    variant: str = "vanilla"
    hidden_size: int = 32
    num_layers: int = 2

    def model(self, task: Task) -> PHDLlamaForCausalLM:
        """Weights are drawn from torch's global generator."""
        heads = self.hidden_size // HEAD
        config = PHDLlamaConfig(
            vocab_size=task.vocabulary, hidden_size=self.hidden_size, intermediate_size=2 * self.hidden_size,
            num_hidden_layers=self.num_layers, num_attention_heads=heads, num_key_value_heads=heads,
            max_position_embeddings=1 + task.length, phd_variant=self.variant, pad_token_id=None,
            bos_token_id=None, eos_token_id=None, initializer_range=self.hidden_size**-0.5,
        )  # fmt: skip
        return PHDLlamaForCausalLM(config)

    def costs(self, task: Task) -> dict[str, float]:
        """Parameters; training FLOPs a token, as run here, with all copies in the last layer; the most bytes
        of keys and values that a sample has at any of its positions.
        """
        heads = self.hidden_size // HEAD
        shape = Shape(
            hidden_size=self.hidden_size,
            num_attention_heads=heads,
            num_query_groups=heads,
            kv_channels=HEAD,
            vocab_size=task.vocabulary,
            mlp_products=[dense_products(self.hidden_size, 2 * self.hidden_size, True)] * self.num_layers,
        )
        variant = Variant.parse(self.variant)
        return {
            "parameters": sum(weight.numel() for weight in self.model(task).parameters()),
            "flops_per_token": variant.flops_per_token(shape, 1 + task.length),
            "kv_bytes": max(
                variant.kv_cache_bytes(shape, 1 + position, FLOAT) for position in range(1 + task.length)
            ),
        }


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The same for every arm. AdamW, linear warm-up over a twentieth of the steps, cosine to zero."""

    steps: int
    samples: int
    learning_rate: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0

    def schedule(self, step: int) -> float:
        """Share of the learning rate at ``step``, counted from 0."""
        warmup = self.steps // 20
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup))) / 2


def train(arm: Arm, task: Task, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What a finished cell says: accuracy and loss on the held-out set, the last training loss, seconds by
    the clock and of CPU time.

    Weights and batches follow from ``seed``: arms of one shape begin with the same weights, all arms see the
    same batches.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)
    model = arm.model(task).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = LambdaLR(optimizer, recipe.schedule)
    loss = torch.tensor(math.nan)
    for step in range(recipe.steps):
        tokens, labels = task.batch(recipe.samples, seed, step)
        loss = _loss(model(tokens, use_cache=False).logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return {
        **evaluate(model, task),
        "train_loss": loss.item(),
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def held_out(task: Task) -> tuple[Tensor, Tensor]:
    """Tokens [b, 1 + n] and labels [b, n]."""
    return task.batch(HELD_OUT_SAMPLES, HELD_OUT_SEED, 0)


def evaluate(model: PHDLlamaForCausalLM, task: Task) -> dict[str, float]:
    """Accuracy over all positions of the held-out set, and the mean loss in nats."""
    model.eval()
    tokens, labels = held_out(task)
    with torch.no_grad():
        logits = torch.cat([model(part, use_cache=False).logits for part in tokens.split(256)])
    accuracy = (logits[:, 1:].argmax(-1) == labels).double().mean()
    return {"accuracy": accuracy.item(), "loss": _loss(logits, labels).item()}


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over positions of [b, 1 + n, v] and [b, n]; the first token has no label."""
    return F.cross_entropy(logits[:, 1:].flatten(0, 1), labels.flatten())

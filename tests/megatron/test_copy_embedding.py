"""Copies that enter the first layer apart: by vectors and by tables."""

import pytest

from tests.megatron.test_phd_model import VARIANTS, batch, build
from tests.world import megatron_globals

CSWA = VARIANTS["PHD-CSWA"]
ADDED = {
    "none": [],
    "vector": ["copy_embedding.vectors.0", "copy_embedding.vectors.1"],
    "table": [f"copy_embedding.tables.{number}.word_embeddings.weight" for number in (0, 1)],
}


def check_zero_start(features: str) -> None:
    """At first logits and losses are those of copies that enter alike, and so is the next random number."""
    import torch

    seen = {}
    for embedding, added in ADDED.items():
        with megatron_globals():
            model = build(f"{CSWA} {features} --phd-copy-embedding {embedding}", scramble=False)
            next_number = torch.rand(1)
            tokens, positions, labels = batch()
            logits, losses = model(tokens, positions, None), model(tokens, positions, None, labels=labels)
            seen[embedding] = [next_number, logits, losses]
            names = [name for name, _ in model.named_parameters()]
            assert [name for name in names if "copy_embedding" in name] == added
            # behind the embedding: buckets of gradients follow this order
            assert names[1 : 1 + len(added)] == added
            losses.mean().backward()
            assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    for embedding in ("vector", "table"):
        for value, expected in zip(seen[embedding], seen["none"], strict=True):
            assert torch.equal(value, expected)


@pytest.mark.parametrize("features", ["", "--bf16"])
def test_starts_as_copies_that_enter_alike(world, features):
    """Bit for bit."""
    world.run(check_zero_start, features)

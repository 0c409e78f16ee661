"""Pieces of a held-out text, and the loss at each of their tokens."""

import json

import pytest
import torch

from phd.evaluation import pieces
from phd.evaluation.pieces import draw_pieces, token_losses
from phd.pattern_flags import with_layers
from phd.rules.keys import Blocks, Full
from tests.models import VOCABULARY

FULL, SPARSE = Full(), Blocks(4, 1, 2)


@pytest.mark.parametrize("variant", ["vanilla", "PHD-CSWA-3-5-12+vector"])
def test_losses_are_the_models(variant, make_model, monkeypatch):
    monkeypatch.setattr(pieces, "LOGIT_ROWS", 7)
    ids = torch.randint(1, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
    for pattern in ((FULL, FULL, FULL), (FULL, SPARSE, FULL)):
        model = with_layers(make_model(variant), pattern)
        with torch.no_grad():
            wanted = [float(model(piece[None], labels=piece[None]).loss) for piece in ids]
        found = token_losses(model, ids.tolist(), 2)
        assert found.shape == (3, 39)
        assert found.mean(1).tolist() == pytest.approx(wanted, rel=1e-5)


def test_pieces(tmp_path):
    corpus = tmp_path / "text.jsonl"
    corpus.write_text("".join(json.dumps({"text": "x" * size}) + "\n" for size in (9, 30, 60)))
    numbers = iter(range(1, 1000))

    def encode(text):
        return [next(numbers) for _ in text]

    drawn = draw_pieces(corpus, encode, 0, 10, 10, seed=1)
    tokens = [token for piece in sorted(drawn, key=max) for token in piece]
    assert tokens == [0, *range(1, 10), 0, *range(10, 40), 0, *range(40, 98)]  # each once, whole
    assert drawn != sorted(drawn, key=max)
    numbers = iter(range(1, 1000))
    assert drawn == draw_pieces(corpus, encode, 0, 10, 10, seed=1)
    with pytest.raises(ValueError, match="text.jsonl has 10 pieces of 10 tokens, and 11 are needed"):
        draw_pieces(corpus, encode, 0, 10, 11, seed=1)

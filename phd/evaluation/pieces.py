"""Pieces of a held-out text, all of one length, and a model's loss at each of their tokens."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phd.evaluation.corpus import read_texts

if TYPE_CHECKING:
    import torch

PIECES = 16
"""Unless --limit says how many."""
MARGIN = 8
"""How many times as much text as is needed is read, to draw the pieces from."""
LOGIT_ROWS = 1024
"""Positions whose logits are in memory at a time."""


def read_pieces(corpus: Path, tokenizer: Any, length: int, count: int, seed: int) -> list[list[int]]:
    """``count`` pieces of ``length`` tokens of the corpus, in the tokens of a model's tokenizer.

    Raises:
        ValueError: see :func:`draw_pieces`.
    """
    from phd.hf.tokenizer import puts_bos_in_front

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    between = tokenizer.bos_token_id if puts_bos_in_front(tokenizer) else tokenizer.eos_token_id
    return draw_pieces(corpus, encode, between, length, count, seed)


def draw_pieces(
    corpus: Path, encode: Callable[[str], list[int]], between: int, length: int, count: int, seed: int
) -> list[list[int]]:
    """``count`` pieces of ``length`` tokens of the corpus, drawn from ``MARGIN`` times as many if there are.

    Args:
        between: the token that stands before each document.

    Raises:
        ValueError: a record of the corpus has no text, or it is too short.
    """
    tokens: list[int] = []
    for text in read_texts(corpus):
        tokens += [between, *encode(text)]
        if len(tokens) >= MARGIN * count * length:
            break
    there = len(tokens) // length
    if there < count:
        raise ValueError(
            f"{corpus} has {there} pieces of {length} tokens, and {count} are needed: give more text, a "
            "smaller --limit or shorter --lengths"
        )
    starts = random.Random(seed).sample(range(there), count)
    return [tokens[start * length : (start + 1) * length] for start in starts]


def token_losses(model: Any, pieces: Sequence[Sequence[int]], batch_size: int) -> "torch.Tensor":
    """The loss of each piece's tokens but the first, in nats. Of ``LOGIT_ROWS`` logits at a time.

    Returns:
        [pieces, s - 1], fp64.
    """
    import torch

    losses = []
    with torch.inference_mode():
        for first in range(0, len(pieces), batch_size):
            ids = torch.tensor(pieces[first : first + batch_size], device=model.device)
            states = model.model(ids, use_cache=False).last_hidden_state[:, :-1]  # [b, s - 1, h]
            of_batch = []
            for begin in range(0, states.shape[1], LOGIT_ROWS):
                rows = slice(begin, begin + LOGIT_ROWS)
                logits = model.lm_head(states[:, rows]).float().log_softmax(-1)
                chosen = logits.gather(-1, ids[:, 1:][:, rows].unsqueeze(-1)).squeeze(-1)
                of_batch.append(-chosen.double())
            losses.append(torch.cat(of_batch, dim=1))
    return torch.cat(losses)

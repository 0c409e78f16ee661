"""Who sees whom: the one rule that every kernel, parallel layout and cache of this project is tested against.

PHD-Transformer (arXiv 2504.14992, section 3). A *position* is a token of the sequence; each is repeated into
K *copies*, counted from 0. Copy 0 is the original token, copies 1..K-1 are its hidden decoding tokens.
"""

import torch
from torch import Tensor


def can_see(
    query_position: Tensor,
    query_copy: Tensor,
    key_position: Tensor,
    key_copy: Tensor,
    *,
    window: int,
    chunk: int | None,
) -> Tensor:
    """Whether a query sees a key, for PHD, PHD-SWA and PHD-CSWA.

    A copy sees the originals up to its own position and the copies of its own token up to itself (eq. 2).
    A hidden copy also sees all hidden copies of the ``window - 1`` positions before its own (PHD-SWA), of
    those in its own chunk only when ``chunk`` is given (PHD-CSWA).

    Args:
        query_position, query_copy, key_position, key_copy: integer tensors that broadcast together.
        window: W in positions, the query's own included; 1 is plain PHD.
        chunk: C in positions, counted from the start of the sequence; None for no chunks.

    Returns:
        bool tensor of the broadcast shape.
    """
    distance = query_position - key_position
    original = (key_copy == 0) & (distance >= 0)
    own_token = (key_copy >= 1) & (distance == 0) & (key_copy <= query_copy)
    hidden = (key_copy >= 1) & (query_copy >= 1) & (distance > 0)
    hidden = hidden & (key_position >= band_start(query_position, window=window, chunk=chunk))
    return original | own_token | hidden


def can_see_naive(
    query_position: Tensor, query_copy: Tensor, key_position: Tensor, key_copy: Tensor
) -> Tensor:
    """Naive repetition (the paper's Figure 1 baseline): causal attention over all copies in position-
    major order.
    """
    earlier = key_position < query_position
    return earlier | ((key_position == query_position) & (key_copy <= query_copy))


def band_start(position: Tensor, *, window: int, chunk: int | None) -> Tensor:
    """First position whose hidden copies a hidden copy at ``position`` sees: of its window and of its
    chunk.
    """
    start = (position - window + 1).clamp(min=0)
    if chunk is not None:
        start = torch.maximum(start, position - position % chunk)
    return start


def dense_mask(
    length: int, copies: int, *, window: int, chunk: int | None, device: torch.device | None = None
) -> Tensor:
    """``can_see`` as a bool mask [s, K, s, K] over (query position, query copy, key position, key copy)."""
    return can_see(*_grid(length, copies, device), window=window, chunk=chunk)


def dense_mask_naive(length: int, copies: int, *, device: torch.device | None = None) -> Tensor:
    """``can_see_naive`` as a bool mask [s, K, s, K]."""
    return can_see_naive(*_grid(length, copies, device))


def _grid(length: int, copies: int, device: torch.device | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    position = torch.arange(length, device=device)
    copy = torch.arange(copies, device=device)
    return position.view(-1, 1, 1, 1), copy.view(-1, 1, 1), position.view(-1, 1), copy

"""Who sees whom: the one rule that every kernel, parallel layout and cache of this project is tested against.

PHD-Transformer (arXiv 2504.14992, section 3). A *position* is a token of the sequence; each is repeated into
K *copies*, counted from 0. Copy 0 is the original token, copies 1..K-1 are its hidden decoding tokens.
"""

import torch
from torch import Tensor

from phd.attention.pattern import Pattern


def can_see(
    query_position: Tensor,
    query_copy: Tensor,
    key_position: Tensor,
    key_copy: Tensor,
    *,
    window: int,
    chunk: int | None,
    document_start: Tensor | None = None,
    pattern: Pattern | None = None,
) -> Tensor:
    """Whether a query sees a key, for PHD, PHD-SWA and PHD-CSWA, on full and on sparse layers.

    A copy sees the originals up to its own position and the copies of its own token up to itself (eq. 2).
    A hidden copy also sees all hidden copies of the ``window - 1`` positions before its own (PHD-SWA), of
    those in its own chunk only when ``chunk`` is given (PHD-CSWA). On a sparse layer all copies see those
    originals alone that the pattern keeps for their position; hidden copies are seen as ever.

    Args:
        query_position, query_copy, key_position, key_copy: integer tensors that broadcast together.
        window: W in positions, the query's own included; 1 is plain PHD.
        chunk: C in positions, counted from the start of the document; None for no chunks.
        document_start: position at which the query's document starts (packed documents: nothing before it
            is seen); broadcasts with the others. None for one document.
        pattern: of a sparse layer, None for full attention. Its blocks count from the document's start.

    Returns:
        bool tensor of the broadcast shape.
    """
    distance = query_position - key_position
    original = (key_copy == 0) & (distance >= 0)
    if document_start is not None:
        original = original & (key_position >= document_start)
    if pattern is not None:
        start = 0 if document_start is None else document_start
        original = original & pattern.keeps(query_position - start, key_position - start)
    own_token = (key_copy >= 1) & (distance == 0) & (key_copy <= query_copy)
    hidden = (key_copy >= 1) & (query_copy >= 1) & (distance > 0)
    start = band_start(query_position, window=window, chunk=chunk, document_start=document_start)
    hidden = hidden & (key_position >= start)
    return original | own_token | hidden


def can_see_naive(
    query_position: Tensor,
    query_copy: Tensor,
    key_position: Tensor,
    key_copy: Tensor,
    *,
    document_start: Tensor | None = None,
) -> Tensor:
    """Naive repetition (the paper's Figure 1 baseline): causal attention over all copies in position-
    major order, from the document's start on.
    """
    earlier = key_position < query_position
    if document_start is not None:
        earlier = earlier & (key_position >= document_start)
    return earlier | ((key_position == query_position) & (key_copy <= query_copy))


def band_start(
    position: Tensor, *, window: int, chunk: int | None, document_start: Tensor | None = None
) -> Tensor:
    """First position whose hidden copies a hidden copy at ``position`` sees: of its window, of its chunk and
    of its document (``document_start`` broadcasts with ``position``; None: 0).
    """
    document = 0 if document_start is None else document_start
    start = (position - window + 1).clamp(min=document)
    if chunk is not None:
        start = torch.maximum(start, position - (position - document) % chunk)
    return start


def dense_mask(
    length: int,
    copies: int,
    *,
    window: int,
    chunk: int | None,
    document_starts: Tensor | None = None,
    pattern: Pattern | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """``can_see`` as a bool mask [b, s, K, s, K] over (sample, query position, query copy, key position, key
    copy); b = 1 without ``document_starts`` [b, s].
    """
    grid = _grid(length, copies, device)
    starts = _per_query(document_starts, device)
    mask = can_see(*grid, window=window, chunk=chunk, document_start=starts, pattern=pattern)
    return mask if document_starts is not None else mask.unsqueeze(0)


def dense_mask_naive(
    length: int,
    copies: int,
    *,
    document_starts: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """``can_see_naive`` as a bool mask [b, s, K, s, K], as ``dense_mask``."""
    mask = can_see_naive(*_grid(length, copies, device), document_start=_per_query(document_starts, device))
    return mask if document_starts is not None else mask.unsqueeze(0)


def _per_query(document_starts: Tensor | None, device: torch.device | None) -> Tensor | None:
    """[b, s] -> [b, s, 1, 1, 1]."""
    return None if document_starts is None else document_starts[:, :, None, None, None].to(device)


def _grid(length: int, copies: int, device: torch.device | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    position = torch.arange(length, device=device)
    copy = torch.arange(copies, device=device)
    return position.view(-1, 1, 1, 1), copy.view(-1, 1, 1), position.view(-1, 1), copy

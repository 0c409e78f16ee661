"""Where each sample's tokens begin: all that a mask and positions may tell a PHD model.

Chunks and sparse layers' blocks are counted from a sample's first token, so one run of tokens in each row is
taken, with padding to its left or right, and anything else refused. Padding on the right needs no care:
nothing before it sees it.

Legend: b samples.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """Slots before each sample's first token."""

    counts: Tensor | None = None
    """[b]; None for none at all"""
    distinct: tuple[int, ...] = (0,)
    """the different numbers in it, on the host; none in compiled code, which cannot read them"""

    def to(self, device: torch.device) -> "Padding":
        """The same on another device."""
        return self if self.counts is None else replace(self, counts=self.counts.to(device))

    def positions(self, slots: Tensor) -> Tensor:
        """[b|1, slots]"""
        return slots[None] if self.counts is None else (slots - self.counts[:, None]).clamp(min=0)

    def document_starts(self, length: int) -> Tensor | None:
        """Padding and tokens as packed documents of ``phd.attention``, [b, length] on the host."""
        if self.counts is None:
            return None
        first = self.counts.cpu()[:, None]
        return first.where(torch.arange(length, device="cpu") >= first, 0)


UNPADDED = Padding()


def read_padding(
    attention_mask: Any, position_ids: Tensor | None, past: int, count: int, device: torch.device
) -> Padding:
    """The padding of a step of ``count`` slots after ``past``. The device is waited for once.

    Args:
        attention_mask: [b, past + count], true at tokens; None if there is no padding.
        position_ids: [b|1, count].

    Raises:
        ValueError: the mask or the positions say more than that.
    """
    if attention_mask is None and position_ids is None:
        return UNPADDED
    slots = torch.arange(past + count, device=device)
    if attention_mask is None:
        tokens = torch.ones_like(slots, dtype=torch.bool)[None]
    else:
        tokens = _mask_of_columns(attention_mask)[:, : past + count].to(device) != 0
        if tokens.shape[1] < past + count:
            raise ValueError(
                f"attention_mask has {tokens.shape[1]} columns of {past + count}: the cache's count too"
            )
    first = (tokens.cumsum(1) == 0).sum(1)
    gap = ((tokens[:, 1:] > tokens[:, :-1]).sum(1) + tokens[:, 0] > 1).any()
    other = torch.zeros_like(gap)
    if position_ids is not None:
        differ = position_ids.to(device) != (slots - first[:, None])[:, past:]
        other = (differ & tokens[:, past:]).any()
    *pads, has_gap, has_other = torch.cat([first, torch.stack([gap, other])]).tolist()
    if has_gap:
        raise ValueError(
            "attention_mask has a gap: a PHD model takes one run of tokens in each row, padded left or "
            "right. (Given no mask, generate makes one from the prompt's pad tokens.)"
        )
    if has_other:
        raise ValueError(
            "position_ids do not count each row's tokens from 0 where attention_mask has them: put packed "
            "documents into rows of their own, and leave position_ids out"
        )
    return Padding(first, tuple(sorted(set(pads)))) if any(pads) else UNPADDED


def step_padding(attention_mask: Any, position_ids: Tensor | None, slots: Tensor) -> Padding:
    """``read_padding`` of one slot after a static cache, for compiled code: not checked."""
    if attention_mask is not None:
        return Padding((_mask_of_columns(attention_mask).cumsum(-1) == 0).sum(-1), ())
    return UNPADDED if position_ids is None else Padding(slots[-1] - position_ids[:, -1], ())


def _mask_of_columns(attention_mask: Any) -> Tensor:
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        raise ValueError(
            "attention_mask must be [samples, columns so far]: a PHD model makes masks between tokens itself"
        )
    return attention_mask

"""E2-LLM (arXiv 2401.06951): a context extended by training on short samples, whose rotary positions are
scaled and shifted otherwise in every iteration.

Position m of a sample is taken to be at (m + t) / g. Both are drawn once an iteration: g from 1 .. G, and t,
for all but the first positions of a document, from 0 .. g * L - R, where L is the context of the model that
is extended and R the length of a sample. No position leaves that context: (R - 1 + t) / g < L.
"""

import hashlib
from argparse import Namespace
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

STILL_TOKENS = 4
"""The paper's number."""


@dataclass(kw_only=True)
class E2Config:
    """Extending a context by rotary positions that are scaled and shifted (E2-LLM)."""

    rope_max_scale: int = 0
    """G: train with rotary positions (m + t) / g, where g is drawn from 1 .. G in every iteration and t from
    0 .. g * CONTEXT - SEQ_LENGTH; at inference --rope-scale g then reads g * CONTEXT tokens. Validation is at
    g = 1, t = 0. 0 turns it off."""

    rope_context: int | None = None
    """With --rope-max-scale: how many positions the model that is extended was trained with.
    --max-position-embeddings by default."""

    rope_still_tokens: int | None = None
    """With --rope-max-scale: how many positions at the beginning of a sample, and of each document where no
    token sees another one's, are not shifted by t; 4 by default."""


def refuse_e2(args: Namespace) -> None:
    """Check E2-LLM's flags, and fill in those that were not given.

    Args:
        args: Megatron's, the sizes known.

    Raises:
        ValueError: names the flags.
    """
    if not args.rope_max_scale:
        given = {"--rope-context": args.rope_context, "--rope-still-tokens": args.rope_still_tokens}
        if names := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{', '.join(names)} is of --rope-max-scale: pass it too, or leave this out")
        return
    if args.rope_context is None:
        args.rope_context = args.max_position_embeddings
    if args.rope_still_tokens is None:
        args.rope_still_tokens = STILL_TOKENS
    if args.rope_max_scale * args.rope_context < args.seq_length:
        raise ValueError(
            f"--seq-length {args.seq_length} is more than --rope-max-scale {args.rope_max_scale} times "
            f"--rope-context {args.rope_context}: no draw keeps it within that context; take shorter samples "
            "or a larger scale"
        )


class Draw(NamedTuple):
    """What an iteration has drawn."""

    scale: int
    """g"""
    shift: int
    """t"""


def draw(args: Namespace, iteration: int) -> Draw:
    """The draw of a training iteration: from --seed and nothing else, so that it is the same on all ranks,
    in all layouts and after a resume.

    Args:
        args: with E2-LLM's flags filled in.
        iteration: counted from 1, as the record counts.
    """
    digest = hashlib.sha256(f"E2-LLM {args.seed} {iteration}".encode()).digest()
    scale_bits, shift_bits = (int.from_bytes(part) for part in (digest[:16], digest[16:]))
    scale = 1 + scale_bits % args.rope_max_scale
    # samples longer than the interpolated context stay where they are
    largest = max(scale * args.rope_context - args.seq_length, 0)
    return Draw(scale, shift_bits % (largest + 1))


def drawn_positions(args: Namespace, drawn: Draw, document_starts: Tensor | None) -> Tensor | None:
    """Rotary positions of the whole sequence under ``drawn``, [b, s] where there are documents and else
    [1, s]: int64 where they are whole, float64 otherwise; None where they are the rows' numbers.

    Args:
        document_starts: [b, s], where no token sees another document's.
    """
    if drawn == Draw(1, 0):
        return None
    positions = torch.arange(args.seq_length, device="cuda")[None]
    of_document = positions if document_starts is None else positions - document_starts
    positions = positions + drawn.shift * (of_document >= args.rope_still_tokens)
    return positions if drawn.scale == 1 else positions.double() / drawn.scale

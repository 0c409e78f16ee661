"""Documents as pieces of one length: the long data of ProLong (arXiv 2410.02660).

Pieces as long as a training's sequences make Megatron's samples single documents. What is left of a document
behind its last whole piece goes, and so do documents that are shorter than one.
"""

from pathlib import Path
from typing import Any

import numpy as np

from data_tools.indexed import open_indexed
from data_tools.numbers import check_at_least
from data_tools.pack import MOST_TOKENS
from data_tools.rewrite import Block, Rewritten, rewrite


def cut(prefix: Path, output: Path, length: int) -> dict[str, Any]:
    """Write OUTPUT.bin, .idx and a card that counts what went. A run that was stopped goes on.

    Args:
        prefix: the data set to read.
        output: the one to write: documents of ``length`` tokens each.
        length: in tokens.

    Returns:
        the card.

    Raises:
        FileNotFoundError, ValueError: see ``open_indexed`` and ``rewrite``.
        ValueError: no document has so many tokens.
    """
    check_at_least("--length", length, most=MOST_TOKENS)
    source = open_indexed(prefix)
    longest = int(source.document_lengths().max(initial=0))
    if longest < length:
        raise ValueError(
            f"--length {length}: the longest document of {prefix} has {longest:,} tokens, so nothing would "
            "be left: take a shorter length, or longer documents"
        )
    card = rewrite(source, output, "cut_from", {"length": length}, lambda block: _pieces(block, length), {})
    counts = card["counts"]
    print(
        f"{output}: {card['documents']:,} pieces of {length:,} tokens; left out: "
        f"{counts.get('short_documents', 0):,} shorter documents with {counts.get('tokens_in_short', 0):,} "
        f"tokens, and {counts.get('tokens_in_tails', 0):,} tokens behind the last piece of "
        f"{counts.get('tails', 0):,} others"
    )
    return card


def _pieces(block: Block, length: int) -> Rewritten:
    pieces = block.lengths // length
    rest = block.lengths % length
    # [piece tokens, rest] of each document in turn, of which the first are kept
    parts = np.stack((pieces * length, rest), axis=1).reshape(-1)
    kept = np.repeat(np.tile((True, False), len(pieces)), parts)
    short = pieces == 0
    counts = {
        "short_documents": int(short.sum()),
        "tokens_in_short": int(rest[short].sum()),
        "tails": int((~short & (rest > 0)).sum()),
        "tokens_in_tails": int(rest[~short].sum()),
    }
    return Rewritten(block.ids[kept], np.full(int(pieces.sum()), length), counts)

"""Where sentences end in tokens, and which of them hold a digit, by what the tokenizer makes of each id."""

import re
from collections.abc import Sequence

import numpy as np

from data_tools.encoders import Encoder

MARKS = {".", "?", "!", "\u3002", "\uff1f", "\uff01"}  # the last three: full width, of Chinese and Japanese
IDS = re.compile(r"\d+(,\d+)*")


def token_texts(encoder: Encoder) -> list[str]:
    """The text of each id, alone."""
    return [encoder.decode([token]) for token in range(encoder.vocab_size)]


def sentence_ends(kind: str, texts: Sequence[str]) -> list[int]:
    """The ids that end a sentence.

    Args:
        kind: ``marks``: ids that are a full stop, a question or an exclamation mark, with white space around
            it or without, and ids that end with a newline; ``newline``: those alone; or ids with commas.
        texts: of all ids.

    Raises:
        ValueError: it is none of these, an id is not the tokenizer's, or no id is such.
    """
    if IDS.fullmatch(kind):
        ids = sorted({int(word) for word in kind.split(",")})
        if ids[-1] >= len(texts):
            raise ValueError(f"--sentence-ends {kind}: the tokenizer has {len(texts)} ids, and no {ids[-1]}")
        return ids
    if kind not in ("marks", "newline"):
        raise ValueError(f"--sentence-ends {kind}: expected marks, newline, or ids like 13,198,30,0,627")
    found = [
        token
        for token, text in enumerate(texts)
        if text.rstrip(" \t").endswith("\n") or (kind == "marks" and text.strip() in MARKS)
    ]
    if not found:
        raise ValueError(f"--sentence-ends {kind}: the tokenizer has no such token: give ids")
    return found


def digit_ids(texts: Sequence[str]) -> list[int]:
    """The ids whose text holds a digit."""
    return [token for token, text in enumerate(texts) if any(map(str.isdigit, text))]


def table(ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """Whether an id is one of ``ids``, bool [vocab_size]."""
    members = np.zeros(vocab_size, bool)
    members[list(ids)] = True
    return members

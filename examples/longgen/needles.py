"""Training documents with needles: text of a corpus with secret numbers strewn over it, and asked for later.

A large model can answer `phd eval --tasks phd_needle` from all that it has read. A model of half a million
parameters learns to from documents that ask little else.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from phd.evaluation.haystack import Haystack
from phd.evaluation.long_context import KEYS, insert, needle_code, needle_question, needle_statement

SENTENCE = 10
"""Tokens of a drill's sentence, about."""
MORE_KEYS = 200
WORD = re.compile("[a-z]{5,}")


def asked_needles(draw: random.Random, count: int) -> Iterator[str]:
    """Needles with their questions and no text around: what a tokenizer is to have seen."""
    for _ in range(count):
        key, code = draw.choice(KEYS), needle_code(draw)
        yield f" {needle_statement(key)} {code}.{needle_question(key)} {code}.\n\n"


def needle_keys(haystack: Haystack) -> list[str]:
    """The evaluation's keys, and frequent words of the corpus."""
    words = Counter(word for word in map(str.strip, haystack.words) if WORD.fullmatch(word))
    return [*KEYS, *(word for word, _ in words.most_common(MORE_KEYS))]


def needle_document(
    haystack: Haystack, length: int, keys: Sequence[str], needles: int, draw: random.Random
) -> str:
    """A text of ``length`` tokens, each of its needles asked for once, somewhere after it.

    Args:
        keys: what has a secret number.
        needles: how many, each of another key.

    Raises:
        ValueError: so many do not fit.
    """
    start = draw.randrange(len(haystack.words))
    sentences = []
    for key in draw.sample(keys, needles):
        code = needle_code(draw)
        hidden = draw.random()
        sentences.append((hidden, f" {needle_statement(key)} {code}."))
        asked = hidden + (1 - hidden) * draw.random()
        sentences.append((asked, f"{needle_question(key)} {code}.\n\n"))
    sentences.sort()

    def text(count: int) -> str:
        return insert(haystack.passage(start, count), sentences)

    count = haystack.fit(length, text, len(haystack.words), least=0)
    return _padded(text(count), haystack, length)


def drill_document(haystack: Haystack, length: int, draw: random.Random) -> str:
    """The needles' sentences without a haystack, cut short, over and over: ``length`` tokens. So many numbers
    follow from what followed their key the last time that a model soon learns to look back for it.
    """
    most = min(len(KEYS), length // (2 * SENTENCE))  # each is met twice or more
    codes = {key: needle_code(draw) for key in draw.sample(KEYS, draw.randint(2, most))}
    keys = draw.choices([*codes], k=length)

    def text(count: int) -> str:
        return "".join(f" the {key} is {codes[key]}." for key in keys[:count])

    return _padded(text(haystack.fit(length, text, length, least=0)), haystack, length)


def _padded(text: str, haystack: Haystack, length: int) -> str:
    """``text`` with line breaks up to ``length`` tokens: samples then begin where documents do."""
    padded = text + "\n" * (length - len(haystack.encode(text)))
    if (tokens := len(haystack.encode(padded))) != length:
        raise ValueError(f"a line break is not one token: {tokens} tokens instead of {length}")
    return padded

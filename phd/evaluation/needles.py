"""The needles of RULER (arXiv 2404.06654): sentences with a key and a value, in a corpus or among lines.

RULER's wording and numbers; the harness's own code fetches a sentence splitter and a text.
"""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from phd.evaluation.haystack import Haystack, insert

Prompt = Callable[[int], tuple[str, list[str]]]
"""How much of what fills it -> a prompt, and its answers."""


@dataclass(frozen=True)
class Needles:
    """A task of needles, as RULER's table 5 has it."""

    haystack: str
    """corpus: the user's own; noise: five sentences again and again; needles: of other keys"""
    keys: str = "words"
    values: str = "numbers"
    hidden: int = 1
    """keys with needles"""
    each: int = 1
    """needles of a key"""
    asked: int = 1
    """keys asked for"""


NEEDLES = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("corpus"),
    "niah_single_3": Needles("corpus", values="uuids"),
    "niah_multikey_1": Needles("corpus", hidden=4),
    "niah_multikey_2": Needles("needles"),
    "niah_multikey_3": Needles("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Needles("corpus", each=4),
    "niah_multiquery": Needles("corpus", hidden=4, asked=4),
}
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@cache
def _english() -> tuple[list[str], list[str]]:
    """Adjectives and nouns."""
    import wonderwords

    words = wonderwords.RandomWord()
    return words.filter(include_categories=["adjective"]), words.filter(include_categories=["noun"])


def _random(kind: str, draw: random.Random) -> str:
    if kind == "numbers":
        return str(draw.randrange(10**6, 10**7))
    if kind == "uuids":
        return str(uuid.UUID(int=draw.getrandbits(128), version=4))
    adjectives, nouns = _english()
    return f"{draw.choice(adjectives)}-{draw.choice(nouns)}"


def _new(kind: str, draw: random.Random, taken: set[str]) -> str:
    """One that is not among ``taken``, which it joins."""
    while (text := _random(kind, draw)) in taken:
        pass
    taken.add(text)
    return text


def _sentence(kind: str, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


@dataclass(frozen=True)
class _Hidden:
    """The needles of a prompt."""

    kind: str
    keys: list[str]
    sentences: list[str]
    """in the order in which they stand in the text"""
    asked: list[str]
    answers: list[str]

    @classmethod
    def drawn(cls, needles: Needles, draw: random.Random) -> "_Hidden":
        taken: set[str] = set()
        keys = [_new(needles.keys, draw, taken) for _ in range(needles.hidden)]
        values = {key: [_new(needles.values, draw, taken) for _ in range(needles.each)] for key in keys}
        sentences = [_sentence(needles.values, key, value) for key in keys for value in values[key]]
        draw.shuffle(sentences)
        asked = draw.sample(keys, needles.asked)
        return cls(needles.values, keys, sentences, asked, [value for key in asked for value in values[key]])

    def ask(self, text: str) -> str:
        """RULER's words around a text."""
        one = len(self.answers) == 1
        some, are, all_the = ("A", "is", "is the") if one else ("Some", "are", "are all the")
        kind = self.kind.removesuffix("s") if one else self.kind
        *others, last = self.asked
        query = f"{', '.join(others)}, and {last}" if others else last
        return (
            f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {kind} afterwards.\n{text}\nWhat {all_the} special magic {kind} for "
            f"{query} mentioned in the provided text? The special magic {kind} for {query} mentioned in the "
            f"provided text {are}"
        )


class _Lines:
    """What needles lie among where it is no text: noise, or needles of other keys."""

    def __init__(self, needles: Needles, keys: set[str], draw: random.Random) -> None:
        self.needles, self.taken, self.draw = needles, keys, draw
        self.made: list[str] = []

    def first(self, count: int) -> list[str]:
        """``count`` of them, the same ones whenever it is asked."""
        if self.needles.haystack == "noise":
            return [NOISE] * count
        while len(self.made) < count:
            key = _new(self.needles.keys, self.draw, self.taken)
            self.made.append(_sentence(self.needles.values, key, _random(self.needles.values, self.draw)))
        return self.made[:count]


def among_lines(needles: Needles, draw: random.Random) -> Prompt:
    """Needles at drawn depths among lines: of noise, or with needles of other keys."""
    hidden = _Hidden.drawn(needles, draw)
    lines = _Lines(needles, {*hidden.keys}, draw)
    depths = sorted(draw.random() for _ in hidden.sentences)

    def prompt(count: int) -> tuple[str, list[str]]:
        text = lines.first(count)
        for depth, sentence in zip(reversed(depths), reversed(hidden.sentences), strict=True):
            text.insert(round(depth * count), sentence)
        return hidden.ask("\n".join(text)), hidden.answers

    return prompt


def in_corpus(needles: Needles, haystack: Haystack, length: int, draw: random.Random) -> Prompt:
    """Needles at drawn depths of a passage, between sentences where one ends near."""
    start = draw.randrange(len(haystack.words))
    # a word has seldom less than a token
    text = "".join(haystack.passage(start, min(2 * length, len(haystack.words))))
    if "special magic" in text.casefold():
        raise ValueError(f"{haystack.corpus} holds needles of its own: 'special magic'")
    hidden = _Hidden.drawn(needles, draw)
    while any(answer in text for answer in hidden.answers):
        hidden = _Hidden.drawn(needles, draw)
    depths = sorted(draw.random() for _ in hidden.sentences)
    sentences = [(depth, f" {sentence}") for depth, sentence in zip(depths, hidden.sentences, strict=True)]

    def prompt(count: int) -> tuple[str, list[str]]:
        return hidden.ask(insert(haystack.passage(start, count), sentences)), hidden.answers

    return prompt

"""Text of a corpus, cut to prompts of so many of the model's own tokens."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from phd.evaluation.corpus import read_texts

MARGIN = 8
"""How many times the longest prompt's words are read, for passages that differ."""
LEAST = 20
"""A prompt with fewer words of the corpus has no haystack."""


class Haystack:
    """The corpus's words, each with the white space before it; the last is followed by the first.

    Args:
        encode: text -> token ids, as the harness encodes it.
        unknown: the id of what the tokenizer cannot write, if there is such.
        longest: tokens of the longest prompt to come.

    Raises:
        ValueError: a record of the corpus has no text (names file and line), or none has.
    """

    def __init__(
        self, corpus: Path, encode: Callable[[str], list[int]], unknown: int | None, longest: int
    ) -> None:
        self.corpus = corpus
        self.encode = encode
        self.unknown = unknown
        self.words: list[str] = []
        for text in read_texts(corpus):
            self.words += re.findall(r"\s*\S+", "\n\n" + text.strip())
            if len(self.words) >= MARGIN * longest:
                break
        if not self.words:
            raise ValueError(f"{corpus} has no text")

    def passage(self, start: int, count: int) -> list[str]:
        """``count`` words from number ``start`` on."""
        end = start + count
        return self.words[start:end] + self.words[: max(0, end - len(self.words))]

    def writable(self, text: str) -> bool:
        """Whether the tokenizer has tokens for all of it."""
        return self.unknown not in self.encode(text)

    def fit(
        self,
        length: int,
        prompt: Callable[[int], str],
        most: int,
        guess: int | None = None,
        least: int = LEAST,
        room: int = 0,
    ) -> int:
        """The number of words with which ``prompt`` has at most ``length`` tokens, and with one more has not.

        Args:
            prompt: number of words of the corpus -> a prompt, with what is to come behind it unless ``room``
                is for that.
            most: words that there are.
            guess: where to begin.
            least: words without which it is no haystack.
            room: tokens of ``length`` that stay free behind the prompt.

        Raises:
            ValueError: ``length`` has no room for the prompt, or the corpus too few words.
        """
        fits = largest(
            lambda count: len(self.encode(prompt(count))) + room,
            length,
            most,
            length // 2 if guess is None else guess,
        )
        if fits == most:
            raise ValueError(
                f"{self.corpus} is too short for prompts of {length} tokens: its {len(self.words):,} words "
                f"make {len(self.encode(prompt(most))) + room:,}"
            )
        if fits < least:
            raise ValueError(
                f"--lengths {length} is too short: of the corpus {max(fits, 0)} words fit in beside the "
                f"question, {least} are needed"
            )
        return fits


def largest(tokens: Callable[[int], int], length: int, most: int, guess: int) -> int:
    """The count from 0 to ``most`` for which ``tokens`` are at most ``length``, and for one more are not; -1
    if they never are. Where ``tokens`` falls here and there, one of those counts.
    """
    fits, over = -1, most + 1
    count = min(guess, most)
    while over - fits > 1:
        if (size := tokens(count)) <= length:
            fits = count
        else:
            over = count
        step = (length - size) * max(count, 1) // max(size, 1)
        count += max(step, 1) if size <= length else min(step, -1)
        if not fits < count < over:
            count = (fits + over) // 2
    return fits


def insert(words: list[str], sentences: Sequence[tuple[float, str]]) -> str:
    """The text of ``words`` with each sentence (and its space before) at its depth, a part of 1; in order."""
    places = [near_sentence(words, round(depth * len(words))) for depth, _ in sentences]
    pieces = []
    for begin, end, (_, sentence) in zip([0, *places], places, sentences, strict=False):
        pieces += [*words[begin:end], sentence]
    return "".join(pieces + words[places[-1] :]).strip()


def near_sentence(words: list[str], at: int) -> int:
    """Where a sentence can stand: before word ``at``, or at the sentence's start nearest to it, if near."""
    reach = min(30, len(words) // 20)
    starts = [
        place
        for place in range(max(0, at - reach), min(len(words), at + reach) + 1)
        if place in (0, len(words)) or words[place - 1][-1] in ".!?"
    ]
    return min(starts, key=lambda place: abs(place - at), default=at)

"""Text of a corpus, cut to prompts of so many of the model's own tokens."""

import re
from collections.abc import Callable
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
    ) -> int:
        """The number of words with which ``prompt`` has at most ``length`` tokens, and with one more has not.

        Args:
            prompt: number of words of the corpus -> a prompt with its answer.
            most: words that there are.
            guess: where to begin.
            least: words without which it is no haystack.

        Raises:
            ValueError: ``length`` has no room for the prompt, or the corpus too few words.
        """
        fits, over = -1, most + 1
        count = min(length // 2 if guess is None else guess, most)
        while over - fits > 1:
            tokens = len(self.encode(prompt(count)))
            if tokens <= length:
                fits = count
            else:
                over = count
            step = (length - tokens) * max(count, 1) // max(tokens, 1)
            count += max(step, 1) if tokens <= length else min(step, -1)
            if not fits < count < over:
                count = (fits + over) // 2
        if fits == most:
            raise ValueError(
                f"{self.corpus} is too short for prompts of {length} tokens: its {len(self.words):,} words "
                f"make {len(self.encode(prompt(most))):,}"
            )
        if fits < least:
            raise ValueError(
                f"--lengths {length} is too short: of the corpus {max(fits, 0)} words fit in beside the "
                f"question, {least} are needed"
            )
        return fits


def near_sentence(words: list[str], at: int) -> int:
    """Where a sentence can stand: before word ``at``, or at the sentence's start nearest to it, if near."""
    reach = min(30, len(words) // 20)
    starts = [
        place
        for place in range(max(0, at - reach), min(len(words), at + reach) + 1)
        if place in (0, len(words)) or words[place - 1][-1] in ".!?"
    ]
    return min(starts, key=lambda place: abs(place - at), default=at)

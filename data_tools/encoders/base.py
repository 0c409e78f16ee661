"""What all tokenizers have in common, and the fast path."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_tools.encoders.hard_texts import TEXTS

END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>")
BEGIN_TOKENS = ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>")
SLOW_PART = 1 << 14
"""Characters of a part that the reference encodes in the place of the fast path."""
MOST_LITERALS = 8
"""More strings than these are looked for with one regular expression."""


class Encoder(ABC):
    """A tokenizer for data sets.

    Attributes:
        vocab_size: the largest id plus one.
        sha256: of its file.
        specials: strings of control and added tokens, with their ids.
        loses_space_mark: decodes U+2581 to a space.
        unknown_id: written for what it does not know; None if nothing is, or there is no such id.
        switched_off: what its file asks for that a data set must not have, in words.
        why_slow: why there is no fast path, or None if there is one.
    """

    vocab_size: int
    sha256: str
    specials: dict[str, int]
    loses_space_mark = False
    unknown_id: int | None = None
    switched_off: Sequence[str] = ()
    why_slow: str | None = "it was switched off"
    _fast: Any = None
    _literals: re.Pattern[str] | list[str]

    @property
    def is_fast(self) -> bool:
        """Whether there is a fast path."""
        return self._fast is not None

    @abstractmethod
    def reference(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids by the reference tokenizer: nothing added, control tokens in the text kept as text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens are left out."""

    def cut(self, text: str, limit: int) -> Iterator[str]:
        """Parts of about ``limit`` characters whose ids, one after the other, are those of ``text``.

        By default the text in one part: a subclass cuts where it is certain.
        """
        yield text

    def unknown(self, text: str, ids: np.ndarray) -> int:
        """How much of ``text``, whose ids are ``ids``, the tokenizer does not know: ids that say so, or
        characters without an id."""
        return 0 if self.unknown_id is None else int(np.count_nonzero(ids == self.unknown_id))

    def encode(self, texts: Sequence[str], limit: int = 1 << 22) -> list[np.ndarray]:
        """Ids of each text, uint32; texts over ``limit`` characters in parts where that is safe."""
        results: list[np.ndarray] = [np.zeros(0, np.uint32)] * len(texts)
        short: list[int] = []
        plain: list[str | None] = []
        for index, text in enumerate(texts):
            # Normalized as a whole, a long text would take many times its size.
            fast = self._fast_input(text) if len(text) <= limit else None
            # Of a text that spells a control token only the part around it needs to go the slow way.
            most = min(limit, SLOW_PART) if fast is None and self.is_fast else limit
            if len(text) > most:
                encoded = (
                    self._encode_whole(group, [self._fast_input(part) for part in group])
                    for group in _groups(self.cut(text, most), limit)
                )
                results[index] = np.concatenate([ids for group in encoded for ids in group])
            else:
                short.append(index)
                plain.append(fast)
        for index, ids in zip(short, self._encode_whole([texts[i] for i in short], plain), strict=True):
            results[index] = ids
        return results

    def _fast_input(self, text: str) -> str | None:
        """What the fast path is to read for ``text``; None where only the reference is certain."""
        return text if self.is_fast and not self._spells_special(text) else None

    def _encode_whole(self, texts: Sequence[str], fast: Sequence[str | None]) -> list[np.ndarray]:
        """Without cutting; all at once, as the fast path remembers words within a call only."""
        done = iter(self._encode_fast([text for text in fast if text is not None]))
        return [
            self._exact(text) if plain is None else next(done)
            for text, plain in zip(texts, fast, strict=True)
        ]

    def _exact(self, text: str) -> np.ndarray:
        (ids,) = self.reference([text])
        return np.array(ids, np.uint32)

    def _encode_fast(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        layout = self._fast.encode_batch(texts, parallel=False).layout
        content, offsets = layout.content.data, layout.offsets.data.tolist()
        return [content[start:end] for start, end in zip(offsets, offsets[1:], strict=False)]

    def _spells_special(self, text: str) -> bool:
        if isinstance(self._literals, re.Pattern):
            return self._literals.search(text) is not None
        return any(literal in text for literal in self._literals)

    def _use_fast(self, load: Callable[[], Any], more_literals: Sequence[str] = ()) -> None:
        """Take gigatoken if it reads this tokenizer and gives the reference's ids on hard texts."""
        literals = [*filter(None, self.specials), *more_literals]
        many = len(literals) > MOST_LITERALS
        self._literals = re.compile("|".join(map(re.escape, literals))) if many else literals
        try:
            self._fast = load()
        except (
            BaseException
        ) as error:  # gigatoken has no error class of its own, and its panics are no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self.why_slow = f"gigatoken does not read it ({error})"
            return
        inputs = [(text, plain) for text in TEXTS if (plain := self._fast_input(text)) is not None]
        expected = self.reference([text for text, _ in inputs])
        found = self._encode_fast([plain for _, plain in inputs])
        for (text, _), right, ids in zip(inputs, expected, found, strict=True):
            if right != ids.tolist():
                self._fast = None
                self.why_slow = f"gigatoken gives other ids than the reference for {text[:40]!r}"
                return
        self.why_slow = None

    def control_id(self, given: str | None, usual: Sequence[str], flag: str, purpose: str) -> int:
        """Id of the token that ends or begins documents.

        Args:
            given: its string, or None for the first of ``usual`` that there is.
            usual: names it goes by.
            flag: that names it, for the message.
            purpose: the flag that needs it, for the message.

        Raises:
            ValueError: there is none.
        """
        if given is not None:
            if given not in self.specials:
                raise ValueError(
                    f"{flag} {given}: the tokenizer has {', '.join(self.specials) or 'no'} control tokens"
                )
            return self.specials[given]
        found = next((name for name in usual if name in self.specials), None)
        if found is None:
            raise ValueError(
                f"{purpose}: name the token with {flag}, one of {', '.join(self.specials) or 'none'}"
            )
        return self.specials[found]


def _groups(parts: Iterator[str], size: int) -> Iterator[list[str]]:
    """Lists of consecutive parts, each of about ``size`` characters in all."""
    group: list[str] = []
    total = 0
    for part in parts:
        group.append(part)
        total += len(part)
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


LETTER_SPACE_LETTER = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")


def cut_before_spaces(text: str, limit: int) -> Iterator[str]:
    """Cut before a space between two letters: in all known split expressions a run of letters ends there, a
    new match begins, and no later character decides on it."""
    start = 0
    while len(text) - start > limit:
        found = LETTER_SPACE_LETTER.search(text, start + limit)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]

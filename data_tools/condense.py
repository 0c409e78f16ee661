"""Fewer tokens of every document, in whole sentences: the text of LongRecipe (arXiv 2409.00509).

Its paper keeps the sentences that hold the kinds of words that a long training changes most, of which
numerals come first; its code keeps, in their place, every sentence that holds a digit, and a part of the
others by lot. This does as the code, but from the whole of a document, where the code reads its beginning.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.encoders import load_encoder
from data_tools.indexed import open_indexed
from data_tools.numbers import check_at_least
from data_tools.rewrite import Block, Rewritten, rewrite, told_of
from data_tools.sentences import digit_ids, sentence_ends, table, token_texts


def condense(
    prefix: Path,
    output: Path,
    *,
    tokenizer_model: Path,
    tiktoken_pattern: str | None = None,
    ends: str = "marks",
    keep_share: float = 0.5,
    tokens: int | None = None,
    seed: int = 0,
    keep_without_end: bool = False,
) -> dict[str, Any]:
    """Write OUTPUT.bin, .idx and a card that says what was kept. A run that was stopped goes on.

    Args:
        prefix: the data set to read.
        output: the one to write.
        tokenizer_model: that it was made with; see ``encoders.load_encoder``, also for ``tiktoken_pattern``.
        ends: see ``sentences.sentence_ends``.
        keep_share: of the sentences without a digit, each is kept with this probability.
        tokens: of a document at most, from its first kept sentence on; None for all that is kept.
        seed: of the draws, which depend on it and the number of the document alone.
        keep_without_end: keep whole a document in which no sentence ends; otherwise it stops the run.

    Returns:
        the card.

    Raises:
        FileNotFoundError, ValueError: see ``open_indexed``, ``load_encoder`` and ``rewrite``.
        ValueError: a number is none that can be, the tokenizer is another than that of the data, or in a
            document no sentence ends.
    """
    if not 0 <= keep_share <= 1:
        raise ValueError(f"--keep-share must be from 0 to 1, got {keep_share}")
    check_at_least("--seed", seed, least=0)
    if tokens is not None:
        check_at_least("--tokens", tokens)
    source = open_indexed(prefix)
    encoder = load_encoder(tokenizer_model, fast=False, pattern=tiktoken_pattern)
    told = told_of(prefix)
    if (before := told.get("tokenizer_sha256", encoder.sha256)) != encoder.sha256:
        raise ValueError(
            f"--tokenizer-model {tokenizer_model}: {prefix} was made with another one (sha256 {before[:12]}, "
            f"this file's is {encoder.sha256[:12]}): give that one"
        )
    texts = token_texts(encoder)
    end_ids = sentence_ends(ends, texts)
    selection = Selection(
        str(prefix),
        ends=table(end_ids, encoder.vocab_size),
        digits=table(digit_ids(texts), encoder.vocab_size),
        bos_id=told.get("bos_id"),
        eod_id=told.get("eod_id"),
        keep_share=keep_share,
        tokens=tokens,
        seed=seed,
        keep_without_end=keep_without_end,
    )
    options = {
        "tokenizer_sha256": encoder.sha256,
        "sentence_ends": end_ids,
        "keep_share": keep_share,
        "tokens_at_most": tokens,
        "seed": seed,
    }
    card = rewrite(source, output, "condensed_from", options, selection, {"sentence_ends": end_ids})
    counts = card["counts"]
    print(
        f"{output}: {card['tokens']:,} of {source.tokens:,} tokens, {card['documents']:,} of "
        f"{source.documents:,} documents, {counts.get('sentences_kept', 0):,} of "
        f"{counts.get('sentences', 0):,} sentences ({counts.get('with_digit', 0):,} with a digit)"
    )
    return card


@dataclass(frozen=True)
class Selection:
    """Which sentences of a block stay. A run of tokens that end a sentence ends one."""

    name: str  # of the data set, for messages
    ends: np.ndarray  # bool [vocabulary]
    digits: np.ndarray  # bool [vocabulary]
    bos_id: int | None
    eod_id: int | None
    keep_share: float
    tokens: int | None
    seed: int
    keep_without_end: bool

    def __call__(self, block: Block) -> Rewritten:
        ids, documents = block.ids, len(block.lengths)
        self._check_ids(block)
        stops = np.cumsum(block.lengths)
        starts = stops - block.lengths
        is_end = self.ends[ids]
        self._check_ends(block, starts, stops, is_end)
        # BOS and EOD stand alone, and stay.
        tail = self._is_control(ids, stops - 1, block.lengths, self.eod_id)
        head = self._is_control(ids, starts, block.lengths - tail, self.bos_id)
        last = is_end.copy()
        last[:-1] &= ~is_end[1:]
        last[(stops - 1)[block.lengths > 0]] = True
        last[(stops - 2)[tail]] = True
        last[starts[head]] = True
        # Sentence i has the tokens first[i] to first[i] + size[i].
        first = np.concatenate(([0], np.flatnonzero(last) + 1))[:-1]
        size = np.diff(first, append=len(ids))
        before = np.concatenate(([0], np.cumsum(last)))
        begin, stop = before[starts], before[stops]  # sentences of a document
        document = np.repeat(np.arange(documents), stop - begin)
        control = np.zeros(len(first), bool)
        control[begin[head]] = True
        control[(stop - 1)[tail]] = True
        with_digit = np.logical_or.reduceat(self.digits[ids], first) if len(first) else np.zeros(0, bool)
        draws = self._draws(block.first, stop - begin)
        allowed = ~control
        room = np.full(documents, len(ids) + 1)
        if self.tokens is not None:
            room = self.tokens - head.astype(np.int64) - tail
            allowed &= size <= room[document]
        kept = allowed & (with_digit | (draws < self.keep_share))
        _keep_one(kept, allowed, draws, begin, stop)
        # As many as there is room for, from the first on.
        used = np.cumsum(np.where(kept, size, 0))
        base = np.concatenate(([0], used))[begin]
        kept &= used - base[document] <= room[document]
        left = np.bincount(document[kept], minlength=documents) > 0
        whole = kept | (control & left[document])
        lengths = np.bincount(document[whole], weights=size[whole], minlength=documents).astype(np.int64)
        counts = {
            "sentences": int((~control).sum()),
            "sentences_kept": int(kept.sum()),
            "with_digit": int((with_digit & ~control).sum()),
            "with_digit_kept": int((with_digit & kept).sum()),
            "documents_left_out": int((~left).sum()),
        }
        return Rewritten(ids[np.repeat(whole, size)], lengths[left], counts)

    def _check_ids(self, block: Block) -> None:
        if len(block.ids) and (largest := int(block.ids.max())) >= len(self.ends):
            raise ValueError(
                f"{self.name} holds id {largest}, the tokenizer has {len(self.ends)}: give the "
                "--tokenizer-model that the data set was made with"
            )

    def _check_ends(self, block: Block, starts: np.ndarray, stops: np.ndarray, is_end: np.ndarray) -> None:
        if self.keep_without_end:
            return
        before = np.concatenate(([0], np.cumsum(is_end)))
        without = (before[starts] == before[stops]) & (block.lengths > 0)
        if without.any():
            number = block.first + int(without.argmax())
            raise ValueError(
                f"{self.name}: document {number} ({int(block.lengths[without.argmax()]):,} tokens) has no "
                "sentence end: name what ends its sentences with --sentence-ends, or keep such documents "
                "whole with --on-no-sentence-end keep"
            )

    @staticmethod
    def _is_control(ids: np.ndarray, where: np.ndarray, lengths: np.ndarray, token: int | None) -> np.ndarray:
        """Of each document, whether its token at ``where`` is ``token`` and not all that it has."""
        if token is None or not len(ids):
            return np.zeros(len(where), bool)
        return (lengths > 1) & (ids[np.clip(where, 0, len(ids) - 1)] == token)

    def _draws(self, first: int, counts: np.ndarray) -> np.ndarray:
        """A number from 0 to 1 for each sentence, of generators that belong to the documents."""
        drawn = [
            np.random.default_rng([self.seed, first + number]).random(count)
            for number, count in enumerate(counts.tolist())
        ]
        return np.concatenate(drawn) if drawn else np.zeros(0)


def _keep_one(
    kept: np.ndarray, allowed: np.ndarray, draws: np.ndarray, begin: np.ndarray, stop: np.ndarray
) -> None:
    """Have something left of each document: the sentence with the least number, where none is kept."""
    some = np.concatenate(([0], np.cumsum(kept)))
    for low, high in zip(begin[some[begin] == some[stop]], stop[some[begin] == some[stop]], strict=True):
        if (among := low + np.flatnonzero(allowed[low:high])).size:
            kept[among[draws[among].argmin()]] = True

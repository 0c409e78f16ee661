"""Positions with gaps between sentences: to the rotary embedding a short text reaches over a long context
(LongRecipe, arXiv 2409.00509).

The segments are the sentences of the tokens themselves; LongRecipe's code pairs one document's text with the
segments of another, and numbers the beginning of each text without gaps.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phd.run.files import read_json


@dataclass(kw_only=True)
class GapsConfig:
    """Extending a context by gaps between the positions of sentences (LongRecipe)."""

    position_gaps_to: int | None = None
    """Train samples of --seq-length tokens as if they were as long as this: their rotary positions have gaps
    between sentences, drawn anew for every sample, and all lie below this number. Validation has none."""

    position_sentence_ends: str | None = None
    """With --position-gaps-to: ids of the tokens that end a sentence, as 13,198,30. By default what the cards
    of data that `phd data condense` made say."""


def refuse_gaps(args: Namespace) -> None:
    """Check the flags.

    Args:
        args: Megatron's, the sizes known.

    Raises:
        ValueError: names the flags.
    """
    target = args.position_gaps_to
    if target is None:
        if args.position_sentence_ends is not None:
            raise ValueError(
                "--position-sentence-ends is of --position-gaps-to: pass it too, or leave this out"
            )
        return
    if target < args.seq_length:
        raise ValueError(
            f"--position-gaps-to {target} is less than --seq-length {args.seq_length}: take a longer target, "
            "or shorter samples"
        )
    if target > args.max_position_embeddings:
        raise ValueError(
            f"--position-gaps-to {target} is more than --max-position-embeddings "
            f"{args.max_position_embeddings}: raise that to it, as it is the context of the trained model"
        )


def segment_starts(is_end: np.ndarray, document_starts: np.ndarray) -> np.ndarray:
    """Where sentences and documents begin, in order, int64.

    Args:
        is_end: whether a token ends a sentence, bool [s]; of a run of such tokens the last one does.
        document_starts: where the document of each token starts, int64 [s].
    """
    begins = document_starts == np.arange(len(is_end))
    begins[1:] |= is_end[:-1] & ~is_end[1:]
    begins[0] = True
    return np.flatnonzero(begins)


def gap_positions(
    starts: np.ndarray, document_starts: np.ndarray, room: int, draw: np.random.Generator
) -> np.ndarray:
    """Positions with gaps before segments, int64 [s]: of a document with N segments N of ``room`` + N slots
    are drawn, in which they lie in order, the free slots between them being the gaps; the first one lies in
    the first slot in any case. In the mean the first gap is 2 * room / (N + 1), every other one half of that,
    and as much is left behind the last.

    Args:
        starts: of segments, as ``segment_starts`` gives them.
        document_starts: [s]. Each document has all of ``room`` to itself.
        room: of all gaps of a document together at most.
        draw: a generator of the sample's own.
    """
    length = len(document_starts)
    offsets = np.zeros(len(starts), np.int64)
    documents = document_starts[starts]
    borders = [*np.flatnonzero(np.diff(documents, prepend=-1)), len(starts)]
    for first, stop in zip(borders, borders[1:], strict=False):
        count = stop - first
        slots = np.sort(draw.choice(room + count, count, replace=False, shuffle=False))
        offsets[first + 1 : stop] = (slots - np.arange(count))[1:]
    return np.arange(length) + np.repeat(offsets, np.diff(starts, append=length))


def sentence_end_ids(given: str | None, prefixes: Sequence[str]) -> list[int]:
    """The ids that end sentences: as --position-sentence-ends has them, or as the cards of the data do.

    Raises:
        ValueError: they are no ids, a data set's card has none, or two cards have others.
    """
    if given is not None:
        try:
            ids = sorted({int(word) for word in given.split(",")})
        except ValueError as error:
            raise ValueError(f"--position-sentence-ends {given}: expected ids like 13,198,30") from error
        if ids[0] < 0:
            raise ValueError(f"--position-sentence-ends {given}: an id is at least 0")
        return ids
    found: dict[str, list[int]] = {}
    for prefix in prefixes:
        ends = read_json(Path(f"{prefix}.json")).get("sentence_ends")
        if not ends:
            raise ValueError(
                f"{prefix}.json does not say which tokens end a sentence: pass --position-sentence-ends with "
                "their ids, or make the data with `phd data condense`"
            )
        found[prefix] = ends
    first = next(iter(found), None)
    if first is None:
        raise ValueError("--position-gaps-to needs --position-sentence-ends: no data set's card tells them")
    for prefix, ends in found.items():
        if ends != found[first]:
            raise ValueError(
                f"{first}.json and {prefix}.json have other tokens that end a sentence: pass "
                "--position-sentence-ends with the ids for both"
            )
    return found[first]

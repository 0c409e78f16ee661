"""How the documents of a data set fill sequences of a context length."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from data_tools.indexed import open_indexed
from data_tools.numbers import check_at_least
from data_tools.tables import print_table

MOST_TOKENS = 2**31 - 1
"""Of a context: as Megatron's indices hold it."""


@dataclass(frozen=True)
class Statistics:
    """Of one context length L; documents count with their EOD."""

    length: int
    longer_documents: float  # share of documents that are longer than L
    tokens_in_longer: float  # share of tokens that are in these
    samples: (
        int  # of L tokens in one epoch, documents one after the other, as Megatron's GPTDataset takes them
    )
    cut_documents: float  # share of documents that a sample's border cuts
    mean_context: float  # tokens of its own document that a token sees in such a sample, itself included
    packed_sequences: int  # of L tokens if only documents over L are cut (best fit, longest first)
    padding: float  # share of these sequences that is left empty


def statistics(lengths: np.ndarray, length: int) -> Statistics:
    """What a context of ``length`` tokens makes of documents of ``lengths`` tokens, int64 [documents]."""
    lengths = lengths[lengths > 0]
    tokens = int(lengths.sum())
    ends = np.cumsum(lengths)
    starts = ends - lengths
    longer = lengths > length
    first, last = starts // length, (ends - 1) // length
    # The parts that borders cut documents into: a first, a last and whole samples between.
    head = np.minimum(lengths, (first + 1) * length - starts)
    is_cut = last > first
    tail = np.where(is_cut, ends - last * length, 0)
    between = np.maximum(last - first - 1, 0)
    seen = _triangle(head).sum() + _triangle(tail).sum() + between.sum() * length * (length + 1) // 2
    sequences = _best_fit(lengths, length)
    return Statistics(
        length=length,
        longer_documents=float(longer.mean()),
        tokens_in_longer=float(lengths[longer].sum() / tokens),
        samples=(tokens - 1) // length,
        cut_documents=float(is_cut.mean()),
        mean_context=float(seen / tokens),
        packed_sequences=sequences,
        padding=1 - tokens / (sequences * length),
    )


def _triangle(count: np.ndarray) -> np.ndarray:
    """1 + 2 + ... + count: what the tokens of one part see."""
    return count * (count + 1) // 2


def _best_fit(lengths: np.ndarray, length: int) -> int:
    """Sequences needed when each document goes where it leaves the least room, the longest first.

    Works on how many documents have a length and how many sequences have so much room, so that its time
    depends on ``length`` and not on the number of documents.
    """
    rest = lengths % length
    full = int((lengths // length).sum())
    sizes = np.bincount(rest[rest > 0])
    room: dict[int, int] = {}  # free tokens -> sequences
    rooms: list[int] = []  # its keys, sorted
    opened = 0

    def add(free: int, count: int) -> None:
        if count and free:
            if free not in room:
                insort(rooms, free)
            room[free] = room.get(free, 0) + count

    for size in range(len(sizes) - 1, 0, -1):
        left = int(sizes[size])
        while left:
            place = bisect_left(rooms, size)
            if place == len(rooms):
                each = length // size
                sequences, last = divmod(left, each)
                add(length - each * size, sequences)
                add(length - last * size, 1 if last else 0)
                opened += sequences + (1 if last else 0)
                break
            free = rooms[place]
            taken = min(left, room[free])
            room[free] -= taken
            if not room[free]:
                del room[free]
                rooms.pop(place)
            add(free - size, taken)
            left -= taken
    return full + opened


def pack(prefix: Path, context_lengths: Sequence[int]) -> list[Statistics]:
    """Print and return the statistics of each context length.

    Raises:
        FileNotFoundError, ValueError: see ``open_indexed``.
        ValueError: a length below 1, or a data set without tokens.
    """
    for length in context_lengths:
        check_at_least("--length", length, most=MOST_TOKENS)
    lengths = open_indexed(prefix).document_lengths()
    if not lengths.sum():
        raise ValueError(f"{prefix} holds no tokens")
    median, most = int(np.median(lengths)), int(lengths.max())
    print(
        f"{prefix}: {len(lengths):,} documents of {lengths.mean():,.0f} tokens in the "
        f"mean, {median:,} in the "
        f"median, {most:,} at most"
    )
    results = [statistics(lengths, length) for length in context_lengths]
    # A row for each statistic: side by side their names would take more than a terminal's 80 columns.
    table = Table("context", *(f"{result.length:,}" for result in results))
    table.add_row("longer documents", *(f"{result.longer_documents:.2%}" for result in results))
    table.add_row("tokens in them", *(f"{result.tokens_in_longer:.2%}" for result in results))
    table.add_row("samples", *(f"{result.samples:,}" for result in results))
    table.add_row("documents cut", *(f"{result.cut_documents:.2%}" for result in results))
    table.add_row("mean context seen", *(f"{result.mean_context:,.0f}" for result in results))
    table.add_row("packed whole: sequences", *(f"{result.packed_sequences:,}" for result in results))
    table.add_row("packed whole: padding", *(f"{result.padding:.2%}" for result in results))
    print_table(table)
    return results

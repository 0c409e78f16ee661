"""How Megatron's context parallelism slices a sequence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """Consecutive positions in consecutive rows: the sequence, or a rank's slice of it."""

    rows: slice
    begin: int
    """Position of the first row."""

    @property
    def length(self) -> int:
        return self.rows.stop - self.rows.start


def rank_segments(length: int, rank: int, size: int) -> tuple[Segment, ...]:
    """Segments of a context-parallel rank, as Megatron slices the batch: slices ``rank`` and
    ``2 * size - 1 - rank`` of ``2 * size``.

    Raises:
        ValueError: the positions cannot be sliced evenly.
    """
    if size == 1:
        return (Segment(slice(0, length), 0),)
    if length % (2 * size):
        raise ValueError(f"{length} positions cannot be cut into {2 * size} slices for {size} ranks")
    part = length // (2 * size)
    return (
        Segment(slice(0, part), rank * part),
        Segment(slice(part, 2 * part), (2 * size - 1 - rank) * part),
    )

"""Whether an input still holds what was tokenized: one that was touched, or copied back, is no other."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_tools.files import crc32
from data_tools.inputs import is_url
from data_tools.units import Piece


def piece_crc32(piece: Piece) -> int | None:
    """CRC-32 of a piece's bytes as they are stored; None where they lie elsewhere, or are row groups."""
    source = piece.source
    is_cut = piece.start > 0 or piece.end is not None
    if is_url(source.path) or (source.kind == "parquet" and is_cut):
        return None
    return crc32(Path(source.path), piece.start, piece.end)


def checksums(cards: Iterable[dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """Of each input the beginning, end and checksum of its pieces, as far as the shards' cards tell them."""
    known: dict[str, list[list[Any]]] = {}
    unknown: set[str] = set()
    for card in cards:
        sums = card.get("input_crc32") or [None] * len(card["unit"])
        for (source, start, end), value in zip(card["unit"], sums, strict=True):
            known.setdefault(source["path"], []).append([start, end, value])
            if value is None:
                unknown.add(source["path"])
    return {path: pieces for path, pieces in known.items() if path not in unknown}


def with_old_times(
    card: dict[str, Any], inputs: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], str | None]:
    """The inputs, with the times that the card tells where the time alone is another.

    Args:
        card: of a data set.
        inputs: as they are now.

    Returns:
        the inputs, and the first of them whose content is another than the card tells, if there is one.
    """
    before, known = card["made_from"]["inputs"], card.get("input_crc32", {})
    result = list(inputs)
    if len(before) != len(inputs):
        return result, None
    for place, (old, new) in enumerate(zip(before, inputs, strict=True)):
        path = new["path"]
        if old == new or (old["path"], old["size"]) != (path, new["size"]) or path not in known:
            continue
        if any(crc32(Path(path), start, end) != value for start, end, value in known[path]):
            return result, path
        print(f"{path} has another time, and the content that was tokenized")
        result[place] = old
    return result, None

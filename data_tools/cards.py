"""The card of a data set, PREFIX.json: what it holds and was made from.

It comes last, so a data set with a card is whole. A .bin and .idx without one are another tool's, and kept.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data_tools.files import append_suffix, crc32, rename, sync, write_json
from data_tools.places import DATA_SET_ENDS

COMING = ".json.tmp"


def read_card(prefix: Path) -> dict[str, Any] | None:
    """What PREFIX.json tells of a data set that these tools wrote; None if there is no such file.

    Raises:
        ValueError: it is something else.
    """
    file = append_suffix(prefix, ".json")
    if not file.is_file():
        return None
    if (card := _card_in(file)) is None:
        raise ValueError(f"{file} is no card of `phd data`, and its place is a card's: move it away")
    return card


def _card_in(file: Path) -> dict[str, Any] | None:
    """The card that a file holds; None if it is none, or not there."""
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        if card["documents"] >= 0 and card["tokens"] >= 0 and card["file_bytes"].items():
            return card
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def same_tokenizer(prefixes: Sequence[Path]) -> dict[str, Any]:
    """The vocab_size and tokenizer_sha256 of data sets that are to be used together, as far as cards tell.

    A data set without a card goes with any other.

    Raises:
        ValueError: two were made with different tokenizers.
    """
    return _agreed(prefixes, ("vocab_size", "tokenizer_sha256"), "were made with different tokenizers")


def same_control_tokens(prefixes: Sequence[Path]) -> dict[str, Any]:
    """The eod_id and bos_id of data sets that are to become one; nothing where a card does not tell.

    Raises:
        ValueError: they differ.
    """
    names = ("eod_id", "bos_id")
    agreed = _agreed(prefixes, names, "begin or end their documents with different tokens")
    return {name: agreed[name] for name in agreed if all(name in _told(prefix) for prefix in prefixes)}


def _told(prefix: Path) -> dict[str, Any]:
    card = read_card(prefix) or {}
    return card.get("made_from", {}) | card


def _agreed(prefixes: Sequence[Path], names: Sequence[str], otherwise: str) -> dict[str, Any]:
    agreed: dict[str, Any] = {}
    first: dict[str, Path] = {}
    for prefix in prefixes:
        told = _told(prefix)
        for name in filter(told.__contains__, names):
            if agreed.setdefault(name, told[name]) != told[name]:
                raise ValueError(
                    f"{first[name]} and {prefix} {otherwise} ({name} {agreed[name]} and {told[name]}): "
                    "tokenize one of them again"
                )
            first.setdefault(name, prefix)
    return agreed


def losses(card: dict[str, Any]) -> Iterator[str]:
    """What of the documents the tokenizer cannot give back, a line each, to be told."""
    if marked := card.get("documents_with_space_mark"):
        yield f"{marked:,} documents hold U+2581, SentencePiece's sign for a space: it decodes to one"
    if documents := card.get("documents_with_unknown"):
        yield (
            f"{documents:,} of {card['documents']:,} documents hold what the tokenizer does not know, "
            f"{card['unknown']:,} times: it is lost; a tokenizer with bytes, or made for this text, keeps it"
        )


def refuse_difference(
    file: Path, before: dict[str, Any], now: dict[str, Any], remedy: str, flag: str = "--output-prefix"
) -> None:
    """Raise ValueError if ``file`` was made from something else than ``now``; names the first difference.

    Args:
        file: what tells of ``before``.
        before, now: what it was made from, and what is asked for.
        remedy: all files to delete for the place to be free; the caller knows that they are ours.
        flag: that names the place.
    """
    for name, value in now.items():
        if before.get(name) != value:
            old, new = _first_difference(before.get(name), value)
            raise ValueError(
                f"{file} was made from something else ({name} was {old}, is {new}): give what it was made "
                f"from{_only_touched(old, new)}, choose another {flag}, or delete {remedy} to begin anew"
            )


def _only_touched(old: Any, new: Any) -> str:
    """How an input gets the time back that it had, if that may be all that has changed."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return ""
    version = str(old.get("version"))
    if {**old, "version": ""} != {**new, "version": ""} or not version.isdigit():
        return ""
    at = f"@{version[:-9] or 0}.{version[-9:]:0>9}"
    return f" (if its content is what it was: touch -d {at} {shlex.quote(old['path'])})"


def _first_difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Of two lists of inputs the first pair that differs: there may be thousands."""
    if isinstance(old, list) and isinstance(new, list):
        return next((a, b) for a, b in zip_longest(old, new) if a != b)
    return old, new


def refuse_without_card(prefix: Path, flag: str) -> None:
    """Raise ValueError if a file of PREFIX is there without a card.

    But what the card to come names is what a run left that was stopped in ``put_in_place``.
    """
    if append_suffix(prefix, ".json").is_file():
        return
    left = _card_in(append_suffix(prefix, COMING)) or {"file_bytes": {}}
    for end in (*DATA_SET_ENDS, *([] if left["file_bytes"] else [COMING])):
        if (file := append_suffix(prefix, end)).exists() and end not in left["file_bytes"]:
            raise ValueError(
                f"{file} is there already and no card tells that it may be replaced: choose another {flag}, "
                "or move it away"
            )


def files_of(prefix: Path, card: dict[str, Any]) -> str:
    """What to delete for a data set to be gone: its files by name, as its card tells them."""
    return ", ".join(str(append_suffix(prefix, end)) for end in (".json", *card["file_bytes"]))


def put_in_place(prefix: Path, ends: Sequence[str], card: dict[str, Any]) -> dict[str, Any]:
    """Give PREFIX.bin.tmp and so on their names, and last the card its own.

    Args:
        prefix: of the files.
        ends: of their names, without .tmp.
        card: what to write there beside sizes and the checksum of the index.

    Returns:
        the whole card.
    """
    written = {end: append_suffix(prefix, f"{end}.tmp") for end in sorted(ends)}
    for file in written.values():
        sync(file)
    sizes = {end: file.stat().st_size for end, file in written.items()}
    card = card | {"file_bytes": sizes, "idx_crc32": crc32(written[".idx"])}
    coming = append_suffix(prefix, COMING)
    # Sidecars that an earlier run put in place before it was stopped, and that this one does not have.
    for end in (_card_in(coming) or card)["file_bytes"].keys() - sizes.keys():
        append_suffix(prefix, end).unlink(missing_ok=True)
    write_json(coming, card)
    # A .bin without .idx is no data set to any reader: an old one goes first, the new one comes last.
    append_suffix(prefix, ".idx").unlink(missing_ok=True)
    for end in sorted(written, key=lambda end: end == ".idx"):
        rename(written[end], append_suffix(prefix, end))
    rename(coming, append_suffix(prefix, ".json"))
    return card

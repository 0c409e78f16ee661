"""Put data sets one after the other, at the speed of the disk: the kernel copies the ids."""

import errno
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_tools.files import append_suffix, crc32, lock, rename, sync, write_json
from data_tools.indexed import BLOCK, Indexed, open_indexed, write_index
from data_tools.progress import byte_progress

COPY_BYTES = 1 << 26
IDS, REJECTS = ".ids.jsonl", ".rejects.jsonl"
ADDED_UP = ("documents", "tokens", "documents_with_space_mark", "checked_against_reference")


@dataclass(frozen=True)
class Part:
    """A data set to be merged, and its card if it has one."""

    prefix: Path
    indexed: Indexed
    card: dict[str, Any] | None


def read_card(prefix: Path) -> dict[str, Any] | None:
    """What PREFIX.json tells of a data set that these tools wrote; None if there is no such file.

    Raises:
        ValueError: it is something else.
    """
    file = append_suffix(prefix, ".json")
    if not file.is_file():
        return None
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        if card["documents"] >= 0 and card["tokens"] >= 0 and card["vocab_size"] > 0 and card["file_bytes"]:
            return card
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{file} is no card of `phd data`: move it away, or tokenize again")


def merge_units(folder: Path, output_prefix: Path, *, delete_units: bool = False) -> dict[str, Any]:
    """Make one data set of the finished shards in PREFIX.units.

    Returns:
        the card of the data set.

    Raises:
        ValueError: units are missing, the folder is something else, or the output is there already.
    """
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        made_from, count, digest = plan["made_from"], plan["units"], plan["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: no folder of work units, plan.json cannot be read ({error})") from error
    finished = _finished(output_prefix, "plan", digest)
    if finished is None:
        parts, missing = [], []
        for index in range(count):
            prefix = folder / f"{index:06d}"
            card = read_card(prefix)
            if card is None or card.get("plan") != digest:
                missing.append(index)
            else:
                parts.append(Part(prefix, open_indexed(prefix), card))
        if missing:
            named = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise ValueError(
                f"{folder}: {len(missing)} of {count} units are not done ({named}): run `phd data "
                "tokenize` with "
                "the same arguments again, any number of ranks will do"
            )
        extra = {"plan": digest, "eod_id": made_from["eod_id"], "made_from": made_from}
        finished = _merge(parts, output_prefix, extra, _rejects_of_units(parts))
    if delete_units:
        shutil.rmtree(folder)
    return finished


def merge_data_sets(prefixes: Sequence[Path], output_prefix: Path) -> dict[str, Any]:
    """Make one data set of several, also of ones that Megatron wrote.

    Returns:
        the card of the data set.

    Raises:
        FileNotFoundError, ValueError: see ``open_indexed``.
        ValueError: they hold ids of different types or tokenizers, or the output is there already.
    """
    parts = [Part(prefix, open_indexed(prefix), read_card(prefix)) for prefix in prefixes]
    merged_from = [
        {
            "path": str(part.prefix.resolve()),
            "documents": part.indexed.documents,
            "tokens": part.indexed.tokens,
        }
        for part in parts
    ]
    for part in parts[1:]:
        if part.indexed.dtype != parts[0].indexed.dtype:
            raise ValueError(
                f"{part.prefix} holds {part.indexed.dtype}, {parts[0].prefix} "
                f"{parts[0].indexed.dtype}: they were "
                "made with different vocabularies"
            )
    for name in ("vocab_size", "tokenizer_sha256"):
        known = {_made(part, name): part.prefix for part in parts if _made(part, name) is not None}
        if len(known) > 1:
            (one, first), (two, second) = list(known.items())[:2]
            raise ValueError(
                f"{first} and {second} were made with different tokenizers ({name} {one} and {two})"
            )
    finished = _finished(output_prefix, "merged_from", merged_from)
    if finished is not None:
        return finished
    extra = {
        "merged_from": merged_from,
        "tokenizer_sha256": next(
            (_made(p, "tokenizer_sha256") for p in parts if _made(p, "tokenizer_sha256")), None
        ),
        "vocab_size": next((_made(part, "vocab_size") for part in parts if part.card), None),
    }
    return _merge(parts, output_prefix, {k: v for k, v in extra.items() if v is not None}, None)


def _made(part: Part, name: str) -> Any:
    if part.card is None:
        return None
    return part.card.get(name, part.card.get("made_from", {}).get(name))


def _finished(output_prefix: Path, name: str, value: Any) -> dict[str, Any] | None:
    """The card of an earlier merge of the same; other files in the place are refused."""
    card = read_card(output_prefix)
    if card is None:
        return None
    if card.get(name) == value and open_indexed(output_prefix).tokens == card["tokens"]:
        return card
    raise ValueError(
        f"{append_suffix(output_prefix, '.json')} is there already and was made from something else: choose "
        "another --output-prefix, or delete it"
    )


def _merge(
    parts: Sequence[Part],
    output_prefix: Path,
    extra: dict[str, Any],
    rejects: Iterator[bytes] | None,
) -> dict[str, Any]:
    if not sum(part.indexed.documents for part in parts):
        raise ValueError("--input: there is no document in these files")
    output_prefix.parent.mkdir(parents=True, exist_ok=True)
    bin_bytes = sum(part.indexed.tokens for part in parts) * parts[0].indexed.dtype.itemsize
    if bin_bytes > (free := shutil.disk_usage(output_prefix.parent).free):
        raise OSError(
            errno.ENOSPC,
            f"the merged .bin takes {bin_bytes:,} bytes and {free:,} are free",
            str(output_prefix),
        )
    with_ids = [part for part in parts if append_suffix(part.prefix, IDS).is_file()]
    if with_ids and len(with_ids) < len(parts):
        without = next(part.prefix for part in parts if part not in with_ids)
        raise ValueError(
            f"{with_ids[0].prefix} has document ids ({IDS}), {without} has none: they cannot be merged"
        )

    temporary = {end: append_suffix(output_prefix, f"{end}.tmp") for end in (".bin", ".idx")}
    with lock(temporary[".bin"]), byte_progress() as progress:
        task = progress.add_task("merge", total=bin_bytes, note="")
        segments: list[dict[str, int]] = []
        with open(temporary[".bin"], "wb") as target:
            for part in parts:
                known = None if part.card is None else part.card.get("segments", _one_segment(part))
                source = append_suffix(part.prefix, ".bin")
                if known is None:  # not written by these tools, so without a checksum: one is made on the way
                    size, crc = _copy_and_sum(
                        source, target, lambda done: progress.update(task, advance=done)
                    )
                    known = [{"bytes": size, "crc32": crc}]
                else:
                    _copy(source, target, lambda done: progress.update(task, advance=done))
                segments += known
        write_index(
            temporary[".idx"],
            parts[0].indexed.dtype,
            (block for part in parts for block in part.indexed.length_blocks()),
            _document_ends(parts),
        )
        if with_ids:
            temporary[IDS] = append_suffix(output_prefix, f"{IDS}.tmp")
            with open(temporary[IDS], "wb") as target:
                for part in parts:
                    _copy(append_suffix(part.prefix, IDS), target)
        if any((part.card or {}).get("rejects") for part in parts):
            temporary[REJECTS] = append_suffix(output_prefix, f"{REJECTS}.tmp")
            with open(temporary[REJECTS], "wb") as target:
                if rejects is not None:
                    target.writelines(rejects)
                else:
                    for part in parts:
                        if (file := append_suffix(part.prefix, REJECTS)).is_file():
                            _copy(file, target)
        # A .bin without .idx is no data set to any reader: an old one goes first, the new one comes last.
        append_suffix(output_prefix, ".idx").unlink(missing_ok=True)
        for end in sorted(temporary, key=lambda end: end == ".idx"):
            sync(temporary[end])
            rename(temporary[end], append_suffix(output_prefix, end))

    counts: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for part in parts:
        card = part.card or {"documents": part.indexed.documents, "tokens": part.indexed.tokens}
        counts.update({name: card.get(name, 0) for name in ADDED_UP})
        rejected.update(card.get("rejects", {}))
    content = {
        **{name: counts[name] for name in ADDED_UP},
        "dtype": parts[0].indexed.dtype.name,
        "vocab_size": next((part.card["vocab_size"] for part in parts if part.card), 1 << 31),
        "rejects": dict(sorted(rejected.items())),
        **extra,
        "file_bytes": {end: append_suffix(output_prefix, end).stat().st_size for end in sorted(temporary)},
        "idx_crc32": crc32(append_suffix(output_prefix, ".idx")),
        "segments": segments,
    }
    write_json(append_suffix(output_prefix, ".json"), content)
    return content


def _one_segment(part: Part) -> list[dict[str, int]] | None:
    assert part.card is not None
    if "crc32" not in part.card:
        return None
    return [{"bytes": part.card["file_bytes"][".bin"], "crc32": part.card["crc32"]}]


def _document_ends(parts: Sequence[Part]) -> Iterator[np.ndarray]:
    sequences = 0
    for part in parts:
        ends = part.indexed.document_indices
        for start in range(1, len(ends), BLOCK):
            yield ends[start : start + BLOCK] + sequences
        sequences += len(part.indexed.lengths)


def _rejects_of_units(parts: Sequence[Part]) -> Iterator[bytes]:
    """The units' lists, with the lines counted in the file instead of in the unit's range of it."""
    lines: Counter[str] = Counter()
    for part in parts:
        assert part.card is not None
        before = {}
        for (source, start, _), count in zip(part.card["unit"], part.card["lines"], strict=True):
            before[source["path"], start] = lines[source["path"]]
            lines[source["path"]] += count
        if not (file := append_suffix(part.prefix, REJECTS)).is_file():
            continue
        with open(file, "rb") as records:
            for line in records:
                record = json.loads(line)
                record["line"] += before[record["file"], record.pop("start")]
                yield json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _copy(source: Path, target: IO[bytes], report: Callable[[int], Any] = lambda done: None) -> None:
    """Append a file, by the kernel where it can (on some file systems without moving a byte)."""
    target.flush()
    with open(source, "rb") as file:
        try:
            while done := os.copy_file_range(file.fileno(), target.fileno(), COPY_BYTES):
                report(done)
            target.seek(0, os.SEEK_END)
            return
        except (AttributeError, OSError) as error:
            given_up = isinstance(error, AttributeError) or error.errno in (
                errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF,
            )  # fmt: skip
            if not given_up:
                raise
        target.seek(0, os.SEEK_END)
        while part := file.read(COPY_BYTES):
            target.write(part)
            report(len(part))


def _copy_and_sum(source: Path, target: IO[bytes], report: Callable[[int], Any]) -> tuple[int, int]:
    size = crc = 0
    with open(source, "rb") as file:
        while part := file.read(COPY_BYTES):
            target.write(part)
            crc, size = zlib.crc32(part, crc), size + len(part)
            report(len(part))
    return size, crc

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

from data_tools.cards import (
    files_of,
    put_in_place,
    read_card,
    refuse_difference,
    refuse_without_card,
    same_control_tokens,
    same_tokenizer,
)
from data_tools.contents import checksums
from data_tools.files import append_suffix, lock
from data_tools.indexed import BLOCK, Indexed, open_indexed, write_index
from data_tools.places import check_prefix, data_set_files, real_prefix, refuse_over_inputs, refuse_twice
from data_tools.plan import delete_work
from data_tools.progress import byte_progress
from data_tools.shard import json_line

COPY_BYTES = 1 << 26
IDS, REJECTS, UNITS = ".ids.jsonl", ".rejects.jsonl", ".units"
ADDED_UP = (
    "documents",
    "tokens",
    "documents_with_space_mark",
    "documents_with_unknown",
    "unknown",
    "checked_against_reference",
)


@dataclass(frozen=True)
class Part:
    """A data set to be merged, and its card if it has one."""

    prefix: Path
    indexed: Indexed
    card: dict[str, Any] | None


def merge_units(folder: Path, output_prefix: Path, *, delete_units: bool = False) -> dict[str, Any]:
    """Make one data set of the finished shards in PREFIX.units.

    Called again after that, also when the folder has been deleted, it does nothing.

    Returns:
        the card of the data set.

    Raises:
        ValueError: units are missing, the folder is something else, or the output is there already.
    """
    check_prefix(output_prefix, (".bin", ".idx"), "--output-prefix")
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        made_from, names, options = plan["made_from"], list(plan["units"]), plan["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileNotFoundError) and (card := _merged_before(folder, output_prefix)):
            print(f"{output_prefix} is whole, and {folder} was deleted after its merge: nothing to do")
            return card
        raise ValueError(f"{folder}: no folder of work units, plan.json cannot be read ({error})") from error
    read = [folder / "plan.json", *(file for name in names for file in data_set_files(folder / name))]
    read += [each["path"] for each in made_from["inputs"]]
    refuse_over_inputs(data_set_files(output_prefix), read, "--output-prefix")
    finished = _finished(output_prefix, "made_from", made_from)
    if finished is None:
        parts, missing = [], []
        for index, name in enumerate(names):
            prefix = folder / name
            card = read_card(prefix)
            if card is None or card.get("options") != options:
                missing.append(index)
            else:
                parts.append(Part(prefix, open_indexed(prefix), card))
        if missing:
            named = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise ValueError(
                f"{folder}: {len(missing)} of {len(names)} units are not done ({named}): run `phd data "
                "tokenize` with "
                "the same arguments again, any number of ranks will do"
            )
        told = {name: made_from[name] for name in ("tokenizer_sha256", "eod_id", "bos_id")}
        extra = {
            **same_tokenizer([part.prefix for part in parts[:1]]),
            **told,
            "made_from": made_from,
            "input_crc32": checksums(part.card for part in parts if part.card is not None),
        }
        finished = _merge(parts, output_prefix, extra, _rejects_of_units(parts))
    if delete_units:
        delete_work(folder)
    return finished


def is_units_folder(path: Path) -> bool:
    """Whether a path given to `merge` means a folder of work units, which may be gone, and no data set."""
    return path.is_dir() or (path.name.endswith(UNITS) and not append_suffix(path, ".bin").exists())


def _merged_before(folder: Path, output_prefix: Path) -> dict[str, Any] | None:
    """The card of the data set that the deleted ``folder`` became, if it is whole."""
    if folder.resolve() != append_suffix(output_prefix, UNITS).resolve():
        return None
    card = read_card(output_prefix)
    if card is None or "made_from" not in card or open_indexed(output_prefix).tokens != card["tokens"]:
        return None
    return card


def merge_data_sets(prefixes: Sequence[Path], output_prefix: Path) -> dict[str, Any]:
    """Make one data set of several, also of ones that Megatron wrote.

    Returns:
        the card of the data set.

    Raises:
        FileNotFoundError, ValueError: see ``open_indexed``.
        ValueError: they hold ids of different types or tokenizers, end documents differently, one comes twice
            or is the output, or the output is there already.
    """
    check_prefix(output_prefix, (".bin", ".idx"), "--output-prefix")
    parts = [Part(prefix, open_indexed(prefix), read_card(prefix)) for prefix in prefixes]
    refuse_twice(prefixes)
    read = [file for prefix in prefixes for file in data_set_files(prefix)]
    refuse_over_inputs(data_set_files(output_prefix), read, "--output-prefix")
    merged_from = [
        {
            "path": real_prefix(part.prefix),
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
    extra = {**same_tokenizer(prefixes), **same_control_tokens(prefixes), "merged_from": merged_from}
    finished = _finished(output_prefix, "merged_from", merged_from)
    return finished or _merge(parts, output_prefix, extra, None)


def _finished(output_prefix: Path, name: str, value: Any) -> dict[str, Any] | None:
    """The card of an earlier merge of the same; other files in the place are refused."""
    card = read_card(output_prefix)
    if card is None:
        return None
    where = append_suffix(output_prefix, ".json")
    refuse_difference(where, card, {name: value}, files_of(output_prefix, card))
    if (tokens := open_indexed(output_prefix).tokens) != card["tokens"]:
        raise ValueError(
            f"{where} speaks of {card['tokens']:,} tokens, the .idx beside it of {tokens:,}: choose another "
            f"--output-prefix, or delete {files_of(output_prefix, card)} to begin anew"
        )
    return card


def _merge(
    parts: Sequence[Part],
    output_prefix: Path,
    extra: dict[str, Any],
    rejects: Iterator[bytes] | None,
) -> dict[str, Any]:
    if not sum(part.indexed.documents for part in parts):
        raise ValueError("there is no document in these files: nothing to write")
    refuse_without_card(output_prefix, "--output-prefix")
    output_prefix.parent.mkdir(parents=True, exist_ok=True)
    bin_bytes = sum(part.indexed.tokens for part in parts) * parts[0].indexed.dtype.itemsize
    if bin_bytes > (free := shutil.disk_usage(output_prefix.parent).free):
        raise OSError(
            errno.ENOSPC,
            f"the merged .bin takes {bin_bytes:,} bytes and {free:,} are free",
            str(output_prefix),
        )
    with_ids = [part for part in parts if part.card is not None and IDS in part.card["file_bytes"]]
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
        return put_in_place(output_prefix, list(temporary), _added_up(parts) | extra | {"segments": segments})


def _added_up(parts: Sequence[Part]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for part in parts:
        card = part.card or {"documents": part.indexed.documents, "tokens": part.indexed.tokens}
        counts.update({name: card.get(name, 0) for name in ADDED_UP})
        rejected.update(card.get("rejects", {}))
    return {
        **{name: counts[name] for name in ADDED_UP},
        "dtype": parts[0].indexed.dtype.name,
        "rejects": dict(sorted(rejected.items())),
    }


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
        sequences += part.indexed.sequences


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
                yield json_line(record)


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

"""One work unit becomes one shard: .bin, .idx, sidecars, and last its card, which says that it is whole."""

import json
import multiprocessing
import os
import resource
import sys
import threading
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.contents import piece_crc32
from data_tools.documents import EMPTY, without_tokens
from data_tools.encoders import Encoder, load_encoder
from data_tools.files import append_suffix, lock, sync, write_json
from data_tools.indexed import BLOCK, token_dtype, write_index
from data_tools.parquet import open_parquet
from data_tools.records import Batch, Format, Reject, read_batches
from data_tools.units import Piece, Unit

# What SentencePiece writes for a space: the one character that it does not give back (a space comes instead).
SPACE_MARK = "\u2581"
CHECKED_SHARE = 0.005
"""Of the text, how much is encoded by the reference tokenizer too."""
CHECKED_AT_MOST = 1 << 20
"""Characters; longer documents are not taken as a sample."""
FEWEST_JUDGED = 10_000
"""Records of a unit before their share of bad ones is judged within it."""


@dataclass(frozen=True)
class Settings:
    """How units become shards; the same for all of a data set."""

    tokenizer_model: Path
    form: Format
    eod_id: int | None  # None: none is appended
    bos_id: int | None  # None: none is put in front
    fast: bool
    pattern: str | None
    batch_bytes: int
    stop_on_bad_record: bool
    max_bad_share: float
    empty_is_bad: bool = False  # an empty text is a bad record, not one that is passed over and counted


@dataclass(frozen=True)
class Advance:
    """What a batch added."""

    input_bytes: int
    documents: int
    tokens: int


class BadRecords(ValueError):
    """A record is bad and the run is to stop, or too many are."""


def shard_prefix(folder: Path, unit: Unit) -> Path:
    """Where a unit's shard is, without .bin or .idx."""
    return folder / unit.name


def is_whole(prefix: Path, unit: Unit, options: str) -> bool:
    """Whether the shard is there, complete and made from this unit with these options."""
    card = append_suffix(prefix, ".json")
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        return (
            content["options"] == options
            and content["unit"] == unit.identity()
            and all(
                append_suffix(prefix, end).stat().st_size == size
                for end, size in content["file_bytes"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_shard(
    unit: Unit,
    prefix: Path,
    options: str,
    settings: Settings,
    encoder: Encoder,
    report: Callable[[Advance], None] = lambda advance: None,
) -> dict[str, Any]:
    """Tokenize one unit; the card is written when everything else is on disk.

    Args:
        unit: what to read.
        prefix: of the files to write.
        options: a digest of all that the data set is made from but its inputs.
        settings: of the data set.
        encoder: made from ``settings``.
        report: told of every batch.

    Returns:
        the card.

    Raises:
        BadRecords: names file and line.
        ValueError: an input is damaged, the fast path was wrong, or another process is at this unit.
        OSError: a file cannot be read or written.
    """
    state = _Shard(prefix, settings, encoder)
    with lock(append_suffix(prefix, ".bin.tmp")):
        with state:
            for piece in unit.pieces:
                lines = 0
                for batch in read_batches(
                    piece.source, piece.start, piece.end, settings.form, settings.batch_bytes
                ):
                    report(state.add(batch, piece))
                    lines += batch.lines
                state.lines.append(lines)
        card = {
            "options": options,
            "unit": unit.identity(),
            "input_crc32": [piece_crc32(piece) for piece in unit.pieces],
            "lines": state.lines,
            **state.finish(),
        }
    write_json(append_suffix(prefix, ".json"), card)
    return card


class _Shard:
    """The files of one shard while they grow."""

    def __init__(self, prefix: Path, settings: Settings, encoder: Encoder) -> None:
        self.prefix, self.settings, self.encoder = prefix, settings, encoder
        self.dtype = token_dtype(encoder.vocab_size)
        self.lengths = array("i")
        self.lines: list[int] = []
        self.rejects: Counter[str] = Counter()
        self.tokens = self.crc = self.marked = self.checked = self.characters = self.checked_characters = 0
        self.unknown = self.documents_with_unknown = 0
        self.ends = [
            ".bin",
            ".rejects.jsonl",
            *([".ids.jsonl"] if settings.form.id_field is not None else []),
        ]

    def __enter__(self) -> "_Shard":
        with ExitStack() as stack:
            self.files = {
                end: stack.enter_context(open(append_suffix(self.prefix, f"{end}.tmp"), "wb"))
                for end in self.ends
            }
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self, batch: Batch, piece: Piece) -> Advance:
        encoded = self._encode(batch.texts, piece)
        self._check_sample(batch.texts, encoded, piece)
        lengths = list(map(len, encoded))
        if not all(lengths):
            batch, encoded = without_tokens(batch, lengths), [ids for ids in encoded if len(ids)]
        self._add_rejects(batch.rejects, piece)
        self._count_unknown(batch.texts, encoded)
        ids, lengths = assemble(encoded, self.settings.bos_id, self.settings.eod_id, self.dtype)
        content = ids.tobytes()
        self.files[".bin"].write(content)
        self.crc = zlib.crc32(content, self.crc)
        self.lengths.extend(lengths)
        self.tokens += len(ids)
        if self.encoder.loses_space_mark:
            self.marked += sum(SPACE_MARK in text for text in batch.texts)
        if batch.ids:
            self.files[".ids.jsonl"].write("".join(f"{identifier}\n" for identifier in batch.ids).encode())
        self._check_share()
        return Advance(batch.size, len(batch.texts), len(ids))

    def _encode(self, texts: Sequence[str], piece: Piece) -> list[np.ndarray]:
        try:
            return self.encoder.encode(texts, limit=self.settings.batch_bytes)
        except Exception as error:  # tokenizers raises nothing more precise, and names no document
            if len(texts) > 1:
                for text in texts:
                    self._encode([text], piece)
            raise ValueError(
                f"{piece.source.path}: the tokenizer fails on the document that begins "
                f"{texts[0][:80]!r}: {error}"
            ) from error

    def _count_unknown(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> None:
        for text, ids in zip(texts, encoded, strict=True):
            if unknown := self.encoder.unknown(text, ids):
                self.unknown += unknown
                self.documents_with_unknown += 1

    def _add_rejects(self, rejects: Sequence[Reject], piece: Piece) -> None:
        for reject in rejects:
            if self.settings.stop_on_bad_record and (reject.kind != EMPTY or self.settings.empty_is_bad):
                line = lines_before(piece) + reject.line
                raise BadRecords(
                    f"{piece.source.path}, line {line}: {reject.kind}: {reject.detail}; mend it and run the "
                    "same command again, which keeps the finished units of all other files, or have such "
                    "records counted, listed and left out: --on-bad-record skip"
                )
            self.rejects[reject.kind] += 1
            # The line within the range: the merge, which knows all ranges, makes it the line of the file.
            record = {"file": piece.source.path, "start": piece.start, **asdict(reject)}
            self.files[".rejects.jsonl"].write(json_line(record))

    def _check_share(self) -> None:
        """Stop early where nearly everything is bad: the wrong field, the wrong file."""
        bad = bad_records(self.rejects, self.settings)
        records = len(self.lengths) + bad.total()
        if records >= FEWEST_JUDGED:
            check_bad_share(bad, records, self.settings.max_bad_share, f"{self.prefix}.rejects.jsonl.tmp")

    def _check_sample(self, texts: Sequence[str], encoded: Sequence[np.ndarray], piece: Piece) -> None:
        """Compare with the reference: the first document, and then enough to keep to ``CHECKED_SHARE``."""
        for text, ids in zip(texts, encoded, strict=True):
            due = self.checked_characters <= self.characters * CHECKED_SHARE
            self.characters += len(text)
            if not due or len(text) > CHECKED_AT_MOST or not self.encoder.is_fast:
                continue
            self.checked_characters += len(text)
            self.checked += 1
            if self.encoder.reference([text])[0] != ids.tolist():
                raise ValueError(
                    f"{piece.source.path}: the fast path gives other ids than the reference tokenizer "
                    "for the "
                    f"document that begins {text[:80]!r}; nothing wrong was kept, take --no-fast, and "
                    "report this"
                )

    def finish(self) -> dict[str, Any]:
        """Write the index and put all files in their places; returns what the card tells of them."""
        index = append_suffix(self.prefix, ".idx.tmp")
        write_index(index, self.dtype, self._length_blocks())
        if not self.rejects:
            self.ends.remove(".rejects.jsonl")
            append_suffix(self.prefix, ".rejects.jsonl.tmp").unlink()
        ends = [*self.ends, ".idx"]
        # A .bin without .idx is no data set to any reader: an old one goes first, the new one comes last.
        append_suffix(self.prefix, ".idx").unlink(missing_ok=True)
        for end in ends:
            file = append_suffix(self.prefix, f"{end}.tmp")
            sync(file)
            file.replace(append_suffix(self.prefix, end))  # the card's rename, after these, syncs the folder
        return {
            "documents": len(self.lengths),
            "tokens": self.tokens,
            "dtype": self.dtype.name,
            "vocab_size": self.encoder.vocab_size,
            "rejects": dict(sorted(self.rejects.items())),
            "documents_with_space_mark": self.marked,
            "documents_with_unknown": self.documents_with_unknown,
            "unknown": self.unknown,
            "checked_against_reference": self.checked,
            "crc32": self.crc,
            "file_bytes": {end: append_suffix(self.prefix, end).stat().st_size for end in ends},
        }

    def _length_blocks(self) -> Iterator[np.ndarray]:
        lengths = np.frombuffer(self.lengths, np.int32)
        for start in range(0, len(lengths), BLOCK):
            yield lengths[start : start + BLOCK]


def assemble(
    encoded: Sequence[np.ndarray], bos_id: int | None, eos_id: int | None, dtype: np.dtype
) -> tuple[np.ndarray, list[int]]:
    """Documents one after the other, each between its BOS and EOD.

    Returns:
        ids [sum(lengths)] of ``dtype``, and the lengths.
    """
    first = [] if bos_id is None else [np.array([bos_id], np.uint32)]
    last = [] if eos_id is None else [np.array([eos_id], np.uint32)]
    extra = len(first) + len(last)
    parts = [part for ids in encoded for part in (*first, ids, *last)]
    lengths = [len(ids) + extra for ids in encoded]
    return (np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)), lengths


def json_line(record: dict[str, Any]) -> bytes:
    """A record of a list of rejects; what of a file's name is not UTF-8 is escaped, as JSON escapes it."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def bad_records(rejects: Mapping[str, int], settings: Settings) -> Counter[str]:
    """Those of the rejects that count as bad."""
    return Counter({kind: count for kind, count in rejects.items() if kind != EMPTY or settings.empty_is_bad})


def check_bad_share(rejects: Counter[str], records: int, most: float, where: str) -> None:
    """Raise BadRecords if more than the share ``most`` of ``records`` was bad; ``where`` is their list."""
    if records and rejects.total() > most * records:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in rejects.most_common())
        raise BadRecords(
            f"{rejects.total():,} of {records:,} records are bad ({kinds}), more than "
            f"--max-bad-share {most}; "
            f"they are listed in {where}"
        )


def lines_before(piece: Piece) -> int:
    """Lines (parquet: rows) of the file that begin before the range: reads all of it, so for errors only."""
    if piece.start == 0:
        return 0
    if piece.source.kind == "parquet":
        with open_parquet(piece.source) as file:
            return sum(file.metadata.row_group(group).num_rows for group in range(piece.start))
    left, count = piece.start - 1, 1
    with piece.source.open() as stream:
        while left and (part := stream.read(min(left, 1 << 24))):
            count += part.count(b"\n")
            left -= len(part)
    return count


# Of the counters: bytes, documents and tokens so far, and whether to stop.
STOP = 3
# Of a worker process: the same for all its units.
_settings: Settings
_counters: Any
_encoder: Encoder | None = None


def start_worker(settings: Settings, counters: Any) -> None:
    """Make this process ready for ``work``."""
    global _settings, _counters
    _settings, _counters = settings, counters
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def work(unit: Unit, prefix: Path, options: str) -> int:
    """``write_shard`` in a worker; returns the process's peak memory in bytes."""
    global _encoder
    if _encoder is None:
        _encoder = load_encoder(_settings.tokenizer_model, fast=_settings.fast, pattern=_settings.pattern)

    def report(advance: Advance) -> None:
        with _counters.get_lock():
            for index, value in enumerate((advance.input_bytes, advance.documents, advance.tokens)):
                _counters[index] += value
            if _counters[STOP]:
                raise KeyboardInterrupt

    write_shard(unit, prefix, options, _settings, _encoder, report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _leave_with_parent() -> None:
    """A parent that gets SIGKILL cannot tell its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

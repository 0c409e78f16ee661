"""More tokens from long documents, with the mix of domains as it was: the data of a context extension.

As in Fu et al. (arXiv 2402.10171), whose recipe LongGen follows: every domain keeps its share of the tokens,
and within each the documents over a length get a larger one. A domain is split into its long and its short
documents, two data sets, and Megatron draws from them by weight: no document is cut or copied into another.
"""

import errno
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.blend import Length, Part, check_path, check_place, refuse_unread, share_out, write_blend
from data_tools.cards import (
    files_of,
    put_in_place,
    read_card,
    refuse_difference,
    refuse_without_card,
    same_tokenizer,
)
from data_tools.files import append_suffix, crc32, lock
from data_tools.indexed import Indexed, open_indexed, write_index
from data_tools.numbers import check_at_least
from data_tools.places import data_set_files, real_prefix, refuse_over_inputs, refuse_twice
from data_tools.progress import byte_progress

BLOCK_TOKENS = 1 << 24
"""Tokens read at a time, but for a document that alone has more."""
KINDS = ("long", "short")


def upsample(
    prefixes: Sequence[Path],
    output: Path,
    *,
    longer_than: int,
    long_share: float,
    train_tokens: int | None = None,
    max_epochs: float = 4.0,
    train_share: float = 1.0,
) -> list[float]:
    """Split each domain by its documents' lengths into OUTPUT/NAME-long and -short, and write their blend.

    What is there already, from the same files, is not made again.

    Args:
        prefixes: a data set for each domain; its tokens are its share of the mix.
        output: a folder; the blend is OUTPUT/blend.txt.
        longer_than: a document with more tokens is long.
        long_share: of the tokens trained on, how much comes from long documents, in every domain.
        train_tokens, max_epochs, train_share: as ``blend`` takes them.

    Returns:
        the weights, long and short of each domain.

    Raises:
        FileNotFoundError, ValueError: see ``open_indexed`` and ``blend``.
        ValueError: a domain has no long documents (or no short ones), two domains one name, or a part's place
            is taken.
    """
    if not 0 < long_share < 1:
        raise ValueError(f"--long-share must lie between 0 and 1, got {long_share}")
    check_at_least("--longer-than", longer_than)
    length = Length(train_tokens, max_epochs, train_share)
    names = [prefix.name for prefix in prefixes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two domains are called {min(twice)}: rename one, the parts go by their names")
    # All that can be refused is refused before the first domain is split: that may take hours.
    output = output.resolve()
    check_path(output)
    blend_file = output / "blend.txt"
    refuse_twice(prefixes)
    domains = [open_indexed(prefix) for prefix in prefixes]
    same_tokenizer(prefixes)
    check_place(blend_file, prefixes, "--output")
    read = [file for prefix in prefixes for file in data_set_files(prefix)]
    parts: list[Part] = []
    wanted: list[float] = []
    for domain in domains:
        check_path(domain.prefix.name)
        long = domain.document_lengths() > longer_than
        if not domain.documents:
            raise ValueError(f"{domain.prefix} holds no documents: leave it out")
        if long.all() or not long.any():
            raise ValueError(
                f"{domain.prefix} has no documents of {'at most' if long.any() else 'more than'} "
                f"{longer_than:,} tokens: choose another --longer-than, or leave it out"
            )
        for kind, share in zip(KINDS, (long_share, 1 - long_share), strict=True):
            prefix = output / f"{domain.prefix.name}-{kind}"
            refuse_over_inputs(data_set_files(prefix), read, "--output")
            lengths = _lengths(domain, long if kind == "long" else ~long)
            parts.append(Part(prefix, int(lengths[: round(train_share * len(lengths))].sum(dtype=np.int64))))
            refuse_unread(parts[-1], train_share)
            wanted.append(share * domain.tokens)
    shares = share_out(parts, wanted, blend_file, length)
    todo = [domain for domain in domains if not _is_split(domain, output, longer_than)]
    output.mkdir(parents=True, exist_ok=True)
    need = sum(domain.tokens * domain.dtype.itemsize for domain in todo)
    if need > (free := shutil.disk_usage(output).free):
        raise OSError(errno.ENOSPC, f"the parts take {need:,} bytes and {free:,} are free", str(output))
    with byte_progress() as progress:
        task = progress.add_task("split", total=need, note="")
        for domain in todo:
            _split(domain, output, longer_than, lambda done: progress.update(task, advance=done))
    write_blend(blend_file, parts, shares)
    return shares


def _lengths(domain: Indexed, kept: np.ndarray) -> np.ndarray:
    """Tokens of the sequences of the documents ``kept``, int32."""
    return domain.lengths[np.repeat(kept, np.diff(domain.document_indices))]


@dataclass
class _Writer:
    """One part's .bin while it grows."""

    prefix: Path
    crc: int = 0
    size: int = 0

    def write(self, file: Any, ids: np.ndarray) -> None:
        content = ids.tobytes()
        file.write(content)
        self.crc, self.size = zlib.crc32(content, self.crc), self.size + len(content)


def _source(domain: Indexed, longer_than: int, kind: str) -> dict[str, Any]:
    """What a part is made from, for its card."""
    return {
        "path": real_prefix(domain.prefix),
        "documents": domain.documents,
        "tokens": domain.tokens,
        "idx_crc32": crc32(append_suffix(domain.prefix, ".idx")),
        "longer_than": longer_than,
        "documents_kept": kind,
    }


def _is_split(domain: Indexed, output: Path, longer_than: int) -> bool:
    """Whether an earlier run finished both parts; refuses what else lies in their places."""
    found = []
    for kind in KINDS:
        prefix = output / f"{domain.prefix.name}-{kind}"
        refuse_without_card(prefix, "--output")
        card = read_card(prefix)
        if card is not None:
            now = {"split_from": _source(domain, longer_than, kind)}
            refuse_difference(append_suffix(prefix, ".json"), card, now, files_of(prefix, card), "--output")
        found.append(card is not None)
    return all(found)


def _split(domain: Indexed, output: Path, longer_than: int, report: Callable[[int], Any]) -> None:
    """Write the long and the short documents of ``domain``."""
    writers = {kind: _Writer(output / f"{domain.prefix.name}-{kind}") for kind in KINDS}
    long = domain.document_lengths() > longer_than
    temporary = {kind: append_suffix(writer.prefix, ".bin.tmp") for kind, writer in writers.items()}
    with lock(temporary["long"]), lock(temporary["short"]):
        with open(temporary["long"], "wb") as longs, open(temporary["short"], "wb") as shorts:
            for ids, of_long in _blocks(domain, long):
                writers["long"].write(longs, ids[of_long])
                writers["short"].write(shorts, ids[~of_long])
                report(ids.nbytes)
        for kind, writer in writers.items():
            source = _source(domain, longer_than, kind)
            _finish(domain, long if kind == "long" else ~long, writer, source)


def _blocks(domain: Indexed, long: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids of whole documents one after the other, and for each whether its document is long."""
    lengths = domain.document_lengths()
    ends = np.cumsum(lengths)
    first, done = 0, 0
    with open(append_suffix(domain.prefix, ".bin"), "rb") as file:
        while first < len(lengths):
            stop = max(first + 1, int(np.searchsorted(ends, done + BLOCK_TOKENS, side="right")))
            count = int(ends[stop - 1]) - done
            yield (
                np.fromfile(file, domain.dtype, count=count),
                np.repeat(long[first:stop], lengths[first:stop]),
            )
            first, done = stop, done + count


def _finish(domain: Indexed, kept: np.ndarray, writer: _Writer, source: dict[str, Any]) -> None:
    """The part's .idx and card, and both files in their places."""
    temporary = {end: append_suffix(writer.prefix, f"{end}.tmp") for end in (".bin", ".idx")}
    sequences = np.diff(domain.document_indices)
    lengths = _lengths(domain, kept)
    write_index(temporary[".idx"], domain.dtype, [lengths], [np.cumsum(sequences[kept])])
    card = read_card(domain.prefix) or {}
    known = ("tokenizer_sha256", "eod_id", "bos_id", "vocab_size", "made_from")
    content = {
        "documents": int(kept.sum()),
        "tokens": int(lengths.sum(dtype=np.int64)),
        "dtype": domain.dtype.name,
        **{name: card[name] for name in known if name in card},
        "split_from": source,
        "crc32": writer.crc,
    }
    put_in_place(writer.prefix, list(temporary), content)

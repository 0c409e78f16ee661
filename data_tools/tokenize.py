"""Tokenize documents into Megatron's .bin/.idx: plan units, have workers make their shards, merge them.

Everything that a run has finished is found again by the next one, on this machine or another: the plan and
the shards lie in PREFIX.units until the data set is whole.
"""

import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from data_tools.cards import files_of, losses, read_card, refuse_difference, refuse_without_card
from data_tools.contents import with_old_times
from data_tools.documents import EMPTY
from data_tools.encoders import load_encoder
from data_tools.encoders.base import BEGIN_TOKENS, END_TOKENS
from data_tools.files import append_suffix
from data_tools.inputs import Source, find_sources, named_as_before
from data_tools.merge import UNITS, merge_units
from data_tools.numbers import check_at_least
from data_tools.places import check_prefix, data_set_files, refuse_inputs_within, refuse_over_inputs
from data_tools.plan import delete_work, make_plan, read_plan
from data_tools.progress import byte_progress
from data_tools.records import Format
from data_tools.shard import (
    STOP,
    Settings,
    bad_records,
    check_bad_share,
    is_whole,
    shard_prefix,
    start_worker,
    work,
)
from data_tools.units import Unit

BATCHES_A_WORKER = 128
"""A batch is this part of a worker's memory: the text, its copies on the way, and the tokenizer's own."""
POLL_SECONDS = 0.25
NO_MAIN_GUARD = 79
"""Exit status of a worker whose main module calls ``tokenize`` while it is imported."""


def tokenize(
    inputs: Sequence[str | Path],
    output_prefix: Path,
    *,
    tokenizer_model: Path,
    tiktoken_pattern: str | None = None,
    fast: bool = True,
    append_eod: bool = False,
    eod_token: str | None = None,
    prepend_bos: bool = False,
    bos_token: str | None = None,
    form: Format | None = None,
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
    unit_size: int | None = None,
    worker_memory: int = 1_000_000_000,
    stop_on_bad_record: bool = True,
    max_bad_share: float = 0.01,
    empty_is_bad: bool = False,
) -> dict[str, Any] | None:
    """Write ``output_prefix``.bin, .idx and a .json that says what they hold; the .json is written last.

    The files do not depend on ``workers``, ``world_size`` or on interruptions. Called again after one, it
    goes on; called again when all is done, it does nothing. With a ``world_size`` above 1 the shards stay in
    ``output_prefix``.units for ``merge``.

    Args:
        inputs: files, folders, patterns and URLs.
        output_prefix: of the files to write; what --data-path takes.
        tokenizer_model: see ``encoders.load_encoder``, also for ``tiktoken_pattern``.
        fast: take the fast path where there is one.
        append_eod, prepend_bos: end, begin every document with a control token.
        eod_token, bos_token: their strings; by default the tokenizer's.
        form: what a document looks like.
        workers: processes.
        rank, world_size: which share of the units this call does.
        unit_size: bytes of a work unit; by default a 256th of the inputs, 4 MiB to 1 GiB.
        worker_memory: bytes that a worker may use, for documents up to a twentieth of that.
        stop_on_bad_record: otherwise they are counted and listed in ``output_prefix``.rejects.jsonl.
        max_bad_share: more of them stop the run all the same.
        empty_is_bad: an empty text is a bad record; otherwise it is passed over, counted and listed.

    Returns:
        the content of the .json; None if other ranks' units are still to come.

    Raises:
        ValueError: a bad record (names file and line), a tokenizer that cannot do what is asked, another run
            at the same unit, inputs or options other than those of the files that lie there already (names
            the difference), or files there that are not ours.
        FileNotFoundError: an input or the tokenizer is missing.
    """
    form = form or Format()
    _check_options(workers, rank, world_size, unit_size, worker_memory, max_bad_share)
    check_prefix(output_prefix, (".bin", ".idx"), "--output-prefix")
    if eod_token is not None and not append_eod:
        raise ValueError(f"--eod-token {eod_token} does nothing without --append-eod: give both, or none")
    if bos_token is not None and not prepend_bos:
        raise ValueError(f"--bos-token {bos_token} does nothing without --prepend-bos: give both, or none")
    sources = find_sources(inputs)
    _check_form(sources, form)
    folder = append_suffix(output_prefix, UNITS)
    _check_places(output_prefix, folder, [source.path for source in sources], tokenizer_model)
    card = read_card(output_prefix)
    if (done := card or read_plan(folder)) and "made_from" in done:
        sources = named_as_before(sources, done["made_from"]["inputs"])
    encoder = load_encoder(tokenizer_model, fast=False, pattern=tiktoken_pattern)
    eod_id = encoder.control_id(eod_token, END_TOKENS, "--eod-token", "--append-eod") if append_eod else None
    bos_id = (
        encoder.control_id(bos_token, BEGIN_TOKENS, "--bos-token", "--prepend-bos") if prepend_bos else None
    )
    if encoder.switched_off:
        print(
            f"{tokenizer_model} asks for {', '.join(encoder.switched_off)}: switched off, as a text is to "
            "have all of its ids, and the same each time"
        )
    for name, token in (("EOD", eod_id), ("BOS", bos_id)):
        if token is not None:
            string = next(string for string, index in encoder.specials.items() if index == token)
            print(f"{name} is {string}, id {token}")
    made_from = {
        "inputs": [source.identity() for source in sources],
        "tokenizer_sha256": encoder.sha256,
        "tiktoken_pattern": tiktoken_pattern,
        "eod_id": eod_id,
        "bos_id": bos_id,
        "text_field": form.text_field,
        "id_field": form.id_field,
        "document_separator": form.document_separator,
    }
    if card is not None:
        _check_done(output_prefix, card, made_from)
        if world_size == 1:  # a run that was stopped after its last step but one
            delete_work(folder)
        print(f"{output_prefix}: already done, {_summary(card)}")
        return card

    refuse_without_card(output_prefix, "--output-prefix")
    units, options = make_plan(folder, made_from, sources, unit_size, form.document_separator is not None)
    settings = Settings(
        tokenizer_model=Path(tokenizer_model),
        form=form,
        eod_id=eod_id,
        bos_id=bos_id,
        fast=fast,
        pattern=tiktoken_pattern,
        batch_bytes=max(1 << 16, worker_memory // BATCHES_A_WORKER),
        stop_on_bad_record=stop_on_bad_record,
        max_bad_share=max_bad_share,
        empty_is_bad=empty_is_bad,
    )
    mine = units[rank::world_size]
    _run(mine, folder, options, settings, workers, f"rank {rank} of {world_size}: " if world_size > 1 else "")
    _check_rejects(mine, folder, settings)
    if world_size > 1:
        missing = sum(not is_whole(shard_prefix(folder, unit), unit, options) for unit in units)
        left = f"{missing} of {len(units)} units are left to other ranks" if missing else "all units are done"
        print(f"{folder}: rank {rank} of {world_size} is done; {left}")
        print(f"once all are: phd data merge {folder} --output-prefix {output_prefix}")
        return None
    content = merge_units(folder, output_prefix, delete_units=True)
    print(f"{output_prefix}: {_summary(content)}")
    for loss in losses(content):
        print(loss)
    return content


def _check_options(
    workers: int,
    rank: int,
    world_size: int,
    unit_size: int | None,
    worker_memory: int,
    max_bad_share: float,
) -> None:
    check_at_least("--workers", workers)
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"--rank must be from 0 to --world-size less one, got {rank} of {world_size}")
    if unit_size is not None:
        check_at_least("--unit-bytes", unit_size)
    check_at_least("--worker-memory", worker_memory)
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"--max-bad-share must be from 0 to 1, got {max_bad_share}")


def _check_form(sources: Sequence[Source], form: Format) -> None:
    kinds = {source.kind for source in sources}
    if form.document_separator is not None:
        if "\n" in form.document_separator:
            raise ValueError("--document-separator is one line, without its end; '' stands for an empty line")
        if "txt" not in kinds:
            raise ValueError("--document-separator is for .txt files and no --input is one: leave it out")
    if form.id_field is not None and "txt" in kinds:
        raise ValueError("--id-field: .txt files have no fields; leave it out, or those files")


def _run(
    units: Sequence[Unit], folder: Path, options: str, settings: Settings, workers: int, title: str
) -> None:
    """Make the shards of ``units`` that are not there yet."""
    todo = [unit for unit in units if not is_whole(shard_prefix(folder, unit), unit, options)]
    if len(todo) < len(units):
        print(f"{title}{len(units) - len(todo)} of {len(units)} units are done already", flush=True)
    if not todo:
        return
    # A fresh interpreter for each worker: forking one with threads can hang.
    context = multiprocessing.get_context("spawn")
    counters = context.Array("q", STOP + 1)
    peak = 0
    begin = time.monotonic()
    with (
        byte_progress() as progress,
        ProcessPoolExecutor(min(workers, len(todo)), context, start_worker, (settings, counters)) as pool,
    ):
        task = progress.add_task(f"{title}tokenize", total=sum(unit.size for unit in todo), note="")
        processes: set[BaseProcess] = set()
        waiting = iter(todo)
        running: dict[Future, Unit] = {}
        done_bytes = 0

        def show() -> None:
            with counters.get_lock():
                read, documents, tokens = counters[:STOP]
            rate = tokens / max(time.monotonic() - begin, 1e-9)
            note = f"{documents:,} documents, {tokens:,} tokens, {rate / 1e6:.2f}M tokens/s"
            # Bytes of compressed files are counted when their unit is done: only then the share is known.
            most = done_bytes + sum(unit.size for unit in running.values())
            progress.update(task, completed=max(done_bytes, min(read, most)), note=note)

        try:
            while True:
                while len(running) < 2 * workers and (unit := next(waiting, None)) is not None:
                    with _no_interrupts():  # which a worker that this starts inherits
                        future = _submit(pool, unit, folder, options)
                    running[future] = unit
                    processes.update(multiprocessing.active_children())
                if not running:
                    break
                finished, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in finished:
                    memory = future.result()
                    done_bytes += running.pop(future).size
                    peak = max(peak, memory)
                show()
        except BrokenProcessPool as error:
            pool.shutdown(cancel_futures=True)
            how = _why_broken({process.exitcode for process in processes})
            raise ValueError(f"--workers {workers}: one of them {how}") from error
        finally:
            with counters.get_lock():
                counters[STOP] = 1
            pool.shutdown(cancel_futures=True)  # waits: a worker that is starting needs what it was given
    seconds = time.monotonic() - begin
    print(
        f"{title}{done_bytes / 1e6:,.1f} MB in {seconds:,.1f} s ({done_bytes / 1e6 / seconds:,.1f} MB/s), "
        f"at most {peak / 1e6:,.0f} MB a worker"
    )


def _submit(pool: ProcessPoolExecutor, unit: Unit, folder: Path, options: str) -> Future:
    """Hand a unit to a worker, a new process perhaps."""
    try:
        return pool.submit(work, unit, shard_prefix(folder, unit), options)
    except RuntimeError as error:
        if "bootstrapping" not in str(error):
            raise
        sys.exit(NO_MAIN_GUARD)  # this is a worker, on its way through the main module: its parent says so


def _why_broken(exit_codes: set[int | None]) -> str:
    """What became of a worker, by how the workers ended: the others were sent SIGTERM."""
    again = "The same command again goes on from here"
    if NO_MAIN_GUARD in exit_codes:
        return (
            "came back to the call that had started it: a worker imports the main script anew, so put the "
            'call of `tokenize` there under `if __name__ == "__main__":`'
        )
    if -signal.SIGKILL in exit_codes:
        return (
            "was killed (SIGKILL), most often for want of memory; take fewer, or a smaller --worker-memory. "
            f"{again}"
        )
    left = sorted(code for code in exit_codes if code not in (None, 0, -signal.SIGTERM))
    if not left:
        return f"was ended from outside (SIGTERM). {again}"
    if left[0] < 0:
        return f"was ended by {signal.Signals(-left[0]).name}. {again}"
    return f"ended with status {left[0]}; what it said of it is printed above. {again}"


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Have Ctrl-C wait: it is for this process, which then ends its workers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_rejects(units: Sequence[Unit], folder: Path, settings: Settings) -> None:
    bad: Counter[str] = Counter()
    records = 0
    for unit in units:
        card = read_card(shard_prefix(folder, unit))
        assert card is not None
        bad.update(of_unit := bad_records(card["rejects"], settings))
        records += card["documents"] + of_unit.total()
    check_bad_share(bad, records, settings.max_bad_share, f"{folder}/*.rejects.jsonl")


def _check_places(
    output_prefix: Path, folder: Path, inputs: Sequence[str], tokenizer_model: str | Path
) -> None:
    """Raise ValueError if an output would lie over an input, or an input among what is deleted at the end."""
    read = [*inputs, tokenizer_model]
    refuse_over_inputs([*data_set_files(output_prefix), folder / "plan.json"], read, "--output-prefix")
    refuse_inputs_within(folder, read, "--output-prefix")


def _check_done(prefix: Path, card: dict[str, Any], made_from: dict[str, Any]) -> None:
    """Raise ValueError if the data set is not the one that is asked for, or not whole."""
    file, written = append_suffix(prefix, ".json"), files_of(prefix, card)
    remedy = f"choose another --output-prefix, or delete {written} to begin anew"
    if "made_from" not in card:
        raise ValueError(f"{file} was not written by `tokenize`: {remedy}")
    inputs, changed = with_old_times(card, made_from["inputs"])
    if changed is not None:
        raise ValueError(f"{file} was made from something else ({changed} has other content now): {remedy}")
    refuse_difference(file, card["made_from"], made_from | {"inputs": inputs}, written)
    for end, size in card["file_bytes"].items():
        part = append_suffix(prefix, end)
        if not part.is_file() or part.stat().st_size != size:
            raise ValueError(f"{part} is missing or not the {size} bytes that {file} tells: {remedy}")


def _summary(card: dict[str, Any]) -> str:
    empty = card["rejects"].get(EMPTY, 0)
    bad = sum(card["rejects"].values()) - empty
    told = f", {empty:,} empty texts passed over" if empty else ""
    told += f", {bad:,} bad records left out" if bad else ""
    return f"{card['documents']:,} documents, {card['tokens']:,} tokens, {card['dtype']}{told}"

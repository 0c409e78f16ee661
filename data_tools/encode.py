"""Encode batches of documents in worker processes; the results come back in the order of the batches."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from data_tools.documents import Batch, parse

# What SentencePiece writes for a space: the one character that it does not give back (a space comes instead).
SPACE_MARK = "\u2581"


@dataclass(frozen=True)
class Encoded:
    """The documents of one batch: ``lengths[i]`` tokens each, their ids one after the other."""

    lengths: list[int]
    ids: np.ndarray  # int32 [sum(lengths)]
    input_bytes: int
    with_space_mark: int  # documents that hold SPACE_MARK


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know."""

    tokenizer_model: Path
    text_field: str
    append_eod: bool


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--tokenizer-model {path}: there is no such file")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"--tokenizer-model {path}: not a SentencePiece model ({error})") from error


def encode_batches(batches: Iterable[Batch], settings: Settings, workers: int) -> Generator[Encoded]:
    """Encode with ``workers`` processes, holding at most two batches a worker in memory.

    Raises:
        BadRecord: see ``documents.parse``; everything before the record has been yielded.
        ValueError: a worker was killed.
    """
    # A fresh interpreter for each worker: forking one that has loaded torch can hang.
    context = multiprocessing.get_context("spawn")
    pending: deque[Future[Encoded]] = deque()
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(settings,)) as pool:
        try:
            for batch in batches:
                pending.append(pool.submit(_encode, batch))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"--workers {workers}: one of them was killed, most often for want of memory; take fewer"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_processor: sentencepiece.SentencePieceProcessor
_settings: Settings


def _start(settings: Settings) -> None:
    global _processor, _settings
    _processor, _settings = load_tokenizer(settings.tokenizer_model), settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A parent that gets SIGKILL cannot tell its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(batch: Batch) -> Encoded:
    texts = parse(batch, _settings.text_field)
    # One thread: the workers are the parallelism. Control tokens spelt out in a text stay text.
    encoded = _processor.encode(texts, add_bos=False, add_eos=_settings.append_eod, num_threads=1)
    lengths = [len(document) for document in encoded]
    ids = np.fromiter((token for document in encoded for token in document), np.int32, count=sum(lengths))
    return Encoded(lengths, ids, sum(map(len, batch.records)), sum(SPACE_MARK in text for text in texts))

"""The checkpoints that a run saves: none over a whole one, old ones removed, and a second try where a disk
was full for a while or a file system had a hiccup.
"""

import re
import shutil
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from megatron.training.async_utils import is_empty_async_queue, maybe_finalize_async_save
from torch.distributed.checkpoint.api import CheckpointException

from phd.checkpoint.read import saved_folders
from phd.checkpoint.retention import AGAIN, clear_place, remove_old, replace_checkpoint

PAUSE_SECONDS = 10
"""Before a save is tried again."""


class Saves:
    """Megatron's saves, told where and when. Every rank must call each method."""

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self._saved = 0
        self._last: Callable[[], None] | None = None
        self._pending = self._failed = False

    def save(self, iteration: int, save: Callable[[], None]) -> None:
        """Let Megatron save, unless that would write over what it has just loaded: it saves at the end, also
        when a finished run is started again. An asynchronous save waits for the one before.
        """
        args = self.args
        place = Path(args.save)
        if iteration == args.iteration and args.load and Path(args.load) == place:
            return
        # Megatron only warns that one is still being written: on a slow disk each would keep its copy of the
        # model in memory, and a disk that gets full would leave none of them whole.
        self.wait(partial(maybe_finalize_async_save, blocking=True))
        if iteration == self._saved:
            self._save_again(iteration, save)
        else:
            self._save_anew(iteration, save)
        self._saved = iteration
        self._last = partial(self.save, iteration, save)
        if args.keep_last_checkpoints and args.rank == 0:
            remove_old(place, args.keep_last_checkpoints)

    def wait(self, wait: Callable[[], None], last: bool = False) -> None:
        """Let Megatron check on the asynchronous save in progress, or wait for it. Should that have failed,
        the next save is its second try; the ``last`` one is made again here.

        Raises:
            CheckpointException: the second failure in a row.
        """
        try:
            wait()
        except CheckpointException as error:
            if self._failed:
                raise
            self._failed, self._pending = True, False
            self._warn(error, "the training goes on" if not last else "it is tried again")
            self._clear(Path(self.args.save), self._saved)
            self._saved = 0
            if last and self._last is not None:
                self._last()
                wait()
        else:
            if self._pending and is_empty_async_queue():
                self._failed = self._pending = False

    def _save_anew(self, iteration: int, save: Callable[[], None]) -> None:
        place = Path(self.args.save)
        self._clear(place, iteration)
        try:
            save()
        except self._worth_another_try() as error:
            self._warn(error, f"trying again in {PAUSE_SECONDS} s")
            time.sleep(PAUSE_SECONDS)
            self._clear(place, iteration)
            save()
        self._pending = self.args.async_save

    def _worth_another_try(self) -> tuple[type[BaseException], ...]:
        """What fails on every rank at once; one rank alone could not try again without the others."""
        return (CheckpointException, OSError) if self.args.world_size == 1 else (CheckpointException,)

    def _warn(self, error: BaseException, what_now: str) -> None:
        if self.args.rank == 0:
            said = str(error).strip().splitlines() or [type(error).__name__]
            reason = "the disk is full" if is_disk_full(error, Path(self.args.save)) else said[-1]
            print(f"> WARNING: a checkpoint could not be saved ({reason}): {what_now}", flush=True)

    def _clear(self, place: Path, iteration: int) -> None:
        if self.args.rank == 0:
            clear_place(place, iteration)
        torch.distributed.barrier()

    def _save_again(self, iteration: int, save: Callable[[], None]) -> None:
        """Megatron saves what it has saved before, when a result of the next iteration is invalid (then also
        what it knows of that) or the batch grows. The first stays until the second is whole.
        """
        args = self.args
        place = args.save
        args.save = str(Path(place, AGAIN))
        self._clear(Path(args.save), iteration)
        try:
            save()
            maybe_finalize_async_save(blocking=True)
        finally:
            args.save = place
        if args.rank == 0:
            replace_checkpoint(Path(place), iteration)
        torch.distributed.barrier()


def is_disk_full(error: BaseException, save: Path | None) -> bool:
    """Whether the disk is full: also where numpy has an error text of its own for it, and where Megatron's
    writers only say that they failed (then by the space left).
    """
    text = "".join(traceback.format_exception(error))
    if "No space left on device" in text or re.search(r"OSError: \d+ requested and \d+ written", text):
        return True
    if save is None or "Worker failure" not in text:
        return False
    sizes = [sum(file.stat().st_size for file in folder.rglob("*")) for folder in saved_folders(save)]
    return shutil.disk_usage(save).free < max(sizes, default=0)

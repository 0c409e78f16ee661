"""The run guard around Megatron's training loop: locks the run folder, and records how the training ended."""

import contextlib
import multiprocessing
import os
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.core.rerun_state_machine import (
    EXIT_CODE_FAILED_ON_RESULT_VALIDATION,
    EXIT_CODE_RESUME_TO_DISAMBIGUATE,
)
from torch.distributed.checkpoint.api import CheckpointException

from phd.checkpoint.retention import remove_torn
from phd.checkpoint.saves import is_disk_full
from phd.megatron.saver import SaverDied, let_go
from phd.run.lock import RunLock
from phd.run.status import RunStatus
from phd.training.ending import gave_up_loading, keep_traceback, mistake, tell, told_already
from phd.training.errors import explain, remedy_for
from phd.training.timeouts import is_timeout, who_is_silent


class RunGuard:
    """A run folder while this process trains: its lock, and what status.json says in the end."""

    def __init__(self, args: Namespace, folder: Path | None) -> None:
        """Take the folder (rank 0 does, for all). None: this run keeps no record.

        Raises:
            ValueError: it cannot be written, or another job holds it.
        """
        self.rank, self.world_size = args.rank, args.world_size
        self._save = Path(args.save) if args.save else None
        self._lock = self._status = None
        self._folder = folder
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._status = RunStatus(folder, self._save or folder)
            if self.rank == 0:
                self._lock = RunLock(folder)
                self._status.started(args.train_iters, shlex.join(sys.argv))
        except OSError as error:
            raise ValueError(f"cannot write to {folder} ({error.strerror}): {remedy_for(error)}") from error

    @contextlib.contextmanager
    def ending(self, stopped_by: Any) -> Iterator[None]:
        """Around the training: record how it ended.

        Args:
            stopped_by: returns the name of the signal that ended the training, or None.

        Raises:
            SystemExit: instead of an error with a known cause, with one line on it from one rank; and with
                os.EX_TEMPFAIL after a signal, but for torchrun, which would start the rank again at once.
        """
        try:
            yield
        except SystemExit as stop:
            self._on_exit(stop, stopped_by())
            raise
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            kept = keep_traceback(self._folder, self.rank, error)
            full = is_disk_full(error, self._save)
            if full and self._save:
                remove_torn(self._save)  # or there were no room for the status either
            if is_timeout(error):  # a node's fault perhaps, which the next start may not meet
                cause = who_is_silent(error, self.rank, self.world_size)
                print(f"pretrain_phd.py: error: {cause}", file=sys.stderr)  # each rank writes its own
                self._died(cause)
                sys.exit(1)
            elif isinstance(error, SaverDied):
                tell(self.rank, str(error))
                self._died(str(error))
                sys.exit(1)
            elif known := explain(error, full) or mistake(error, kept):
                tell(self.rank, known)
                self._ended("failed", known)
                sys.exit(1)
            elif kept is not None and told_already():
                sys.exit(1)  # a consequence of another rank's error
            else:
                self._died(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                raise
        else:
            if self.rank == 0:
                self._ended("finished")
        finally:
            # What is left of asynchronous saves, and the workers of a DataLoader after an error, ignore the
            # SIGTERM by which Python would end them now; it would wait for them for ever.
            let_go()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises an error for a killed worker
            for child in multiprocessing.active_children():
                if child.daemon:
                    child.kill()
            if self._lock is not None:
                self._lock.release()

    def failed(self, reason: str) -> None:
        """Record an error outside of ``ending`` that another start does not mend."""
        self._ended("failed", reason)

    def _ended(self, state: str, reason: str | None = None) -> None:
        if self._status is not None:
            with contextlib.suppress(OSError):  # a full disk
                self._status.ended(state, reason)

    def _died(self, reason: str) -> None:
        if self._status is not None:
            with contextlib.suppress(OSError):
                self._status.died(reason)

    def _on_exit(self, stop: SystemExit, signal_name: str | None) -> None:
        if stop.code == EXIT_CODE_FAILED_ON_RESULT_VALIDATION:
            self._ended("failed", "a result stayed invalid when it was computed again (see the log)")
        elif stop.code == EXIT_CODE_RESUME_TO_DISAMBIGUATE:
            self._died("Megatron's rerun machine wants an invalid result computed again on another machine")
        elif stop.code in (None, 0):
            if signal_name is None and gave_up_loading(stop):
                self._ended("failed", "Megatron ended the start while it was loading (the log says why)")
                stop.code = 1
            elif self.rank == 0:
                self._ended("interrupted", signal_name or "stopped by an --exit- flag")
            if signal_name and "TORCHELASTIC_RUN_ID" not in os.environ:
                stop.code = os.EX_TEMPFAIL

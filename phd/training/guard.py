"""What surrounds Megatron's training loop so that a run survives: the run folder, a whole checkpoint to start
from, a named end, and no hang without a word.
"""

import contextlib
import errno
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.rerun_state_machine import (
    EXIT_CODE_FAILED_ON_RESULT_VALIDATION,
    EXIT_CODE_RESUME_TO_DISAMBIGUATE,
)
from torch.distributed.checkpoint.api import CheckpointException

from phd.checkpoint.integrity import (
    checkpoint_source,
    chosen_folder,
    fall_back,
    find_damage,
    iteration_folder,
    iteration_of,
    mend_tracker,
    saved_folders,
)
from phd.checkpoint.saver import SaverDied, let_go
from phd.run.lock import RunLock
from phd.run.status import RunStatus, newest_checkpoint
from phd.training.ending import gave_up_loading, keep_traceback, mistake, tell, told_already
from phd.training.resume import refuse_repeated

OURS = Path(__file__).parents[1]

AGAIN = "again"
"""Beside the checkpoints: where one is saved that will take the place of a whole one."""

REPORT_SECONDS = 10
"""How long ranks that waited in vain listen to each other before they end."""


def settle_run_folder(args: Namespace) -> str | None:
    """Where the run's record goes; fills in the parts of --run-dir that were not given as flags. None: there
    is no record, also because nothing is trained (--skip-train).

    Raises:
        ValueError: a flag that would begin the run anew at every start; or a folder is a link to nowhere, as
            to a file system that is not mounted on this node: this start would begin anew.
    """
    if args.run_dir:
        run = Path(args.run_dir)
        args.save = args.save or str(run / "checkpoints")
        for folder in (run, Path(args.save)):
            if folder.is_symlink() and not folder.exists():
                raise ValueError(
                    f"{folder} links to {folder.readlink()}, which is not there: mount it or put it back, "
                    "and start the same command again; or remove the link"
                )
        if args.load and Path(args.load).resolve() != Path(args.save).resolve():
            raise ValueError(
                f"--run-dir {run} continues from its own checkpoints, and --load {args.load} would begin "
                "there again at every start: pass --pretrained-checkpoint instead, for the first weights"
            )
        refuse_repeated(args)
        args.load = args.save
        args.save_interval = args.save_interval or 1000
        if not args.skip_train:
            args.tensorboard_dir = args.tensorboard_dir or str(run / "tensorboard")
        args.wandb_save_dir = args.wandb_save_dir or str(run)
    return None if args.skip_train else args.run_dir or args.save or args.tensorboard_dir


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
            raise ValueError(f"cannot write to {folder} ({error.strerror}): {_remedy(error)}") from error

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
            if is_timeout(error):  # perhaps a node that another start will not get
                cause = who_is_silent(error, self.rank, self.world_size)
                print(f"pretrain_phd.py: error: {cause}", file=sys.stderr)  # each rank its own
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
                sys.exit(1)  # its consequence
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


def explain(error: BaseException, disk_full: bool = False) -> str | None:
    """One line on an error whose cause and remedy are known, or None."""
    if disk_full:
        remedy = _remedy(OSError(errno.ENOSPC, ""))
        return f"the disk is full: what was being written is lost, what was saved before is whole; {remedy}"
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "out of GPU memory: lower --micro-batch-size, or recompute (--recompute-granularity full "
            "--recompute-method uniform --recompute-num-layers 1); phd plan tells what a command line takes"
        )
    system_error = next((e for e in _chain(error) if isinstance(e, OSError) and e.errno), None)
    if isinstance(system_error, FileNotFoundError):
        return f"{system_error.filename} is missing: {_remedy(system_error)}"
    if system_error is not None and system_error.errno in (errno.EROFS, errno.EACCES, errno.EDQUOT):
        return f"cannot write {system_error.filename} ({system_error.strerror}): {_remedy(system_error)}"
    if system_error is not None and system_error.errno == errno.EMFILE:
        return "too many open files: raise `ulimit -Hn`, or make fewer data sets of them (phd data merge)"
    if isinstance(error, AssertionError) and "OptimizerParamScheduler" in str(error):
        return (
            "the checkpoint was made for another schedule (--train-iters, --lr, --lr-decay-iters and the "
            "like): pass the same flags, or --override-opt-param-scheduler to change it on purpose"
        )
    if isinstance(error, ValueError) and _through_our_code(error):
        return str(error)
    return None


def _through_our_code(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(OURS in Path(frame.filename).parents and frame.filename != __file__ for frame in frames)


def is_disk_full(error: BaseException, save: Path | None) -> bool:
    """Also where numpy tells it in words of its own, and where Megatron's writers only tell that they failed:
    then by what is left on the disk.
    """
    text = "".join(traceback.format_exception(error))
    if "No space left on device" in text or re.search(r"OSError: \d+ requested and \d+ written", text):
        return True
    if save is None or "Worker failure" not in text:
        return False
    sizes = [sum(file.stat().st_size for file in folder.rglob("*")) for folder in saved_folders(save)]
    return shutil.disk_usage(save).free < max(sizes, default=0)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _remedy(error: OSError) -> str:
    remedies = {
        errno.ENOSPC: "make room (--keep-last-checkpoints removes old ones) and start the same command again",
        errno.EDQUOT: "make room within the quota and start the same command again",
        errno.ENOENT: "put it back and start the same command again",
    }
    return remedies.get(error.errno or 0, "choose a --run-dir that can be written")


def agree_on_checkpoint(args: Namespace) -> None:
    """Read every byte of the checkpoint that will be loaded, each rank its share; if a checksum is wrong, all
    ranks turn to the next whole one. Called with the process group up, before Megatron loads.

    Raises:
        ValueError: there is no other, or this one was asked for.
    """
    source = checkpoint_source(args)
    root = getattr(args, source)
    if args.rank == 0:
        for place in {args.load, root} - {None}:
            mend_tracker(Path(place))
    torch.distributed.barrier()
    folder = chosen_folder(Path(root), args.ckpt_step) if root else None
    while folder is not None and folder.is_dir():
        found: list[str | None] = [None] * args.world_size
        torch.distributed.all_gather_object(found, find_damage(folder, args.rank, args.world_size))
        damage = next((text for text in found if text), None)
        if damage is None:
            return
        folder = fall_back(args, source, folder, damage)


def clear_place(save: Path, iteration: int) -> None:
    """Before a save: remove what an interrupted save left at its place, which torch would write into."""
    shutil.rmtree(save / AGAIN, ignore_errors=True)
    folder = iteration_folder(save, iteration)
    if folder.is_dir():
        _remove(folder)


def replace_checkpoint(save: Path, iteration: int) -> None:
    """Put the checkpoint in AGAIN in the place of the one of that iteration."""
    place = iteration_folder(save, iteration)
    place.rename(save / AGAIN / "replaced")
    iteration_folder(save / AGAIN, iteration).rename(place)
    shutil.rmtree(save / AGAIN)


def remove_torn(save: Path) -> None:
    """Remove what interrupted saves left."""
    shutil.rmtree(save / AGAIN, ignore_errors=True)
    for folder in saved_folders(save):
        if not (folder / ".metadata").exists():
            _remove(folder, ignore_errors=True)


def remove_old(save: Path, keep: int) -> None:
    """Keep the newest ``keep`` of the checkpoints that are complete by the tracker file."""
    newest = newest_checkpoint(save)
    for folder in [folder for folder in saved_folders(save) if iteration_of(folder) <= newest][keep:]:
        _remove(folder, ignore_errors=True)


def _remove(folder: Path, ignore_errors: bool = False) -> None:
    """Remove a checkpoint, unless it is a link to one that lies elsewhere."""
    if not folder.is_symlink():
        (folder / ".metadata").unlink(missing_ok=True)  # first: from now on it is no checkpoint
        shutil.rmtree(folder, ignore_errors=ignore_errors)


def is_timeout(error: BaseException) -> bool:
    """Whether a collective waited in vain (gloo: 'Timed out waiting', NCCL: 'Watchdog caught collective')."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("timed out" in text or "timeout" in text)


def who_is_silent(error: BaseException, rank: int, world_size: int) -> str:
    """After a timeout: tell the other ranks, through the store that torchrun keeps, where this one waited;
    name those that have told nothing.
    """
    waited = _collective(error)
    message = f"rank {rank} waited in vain in {waited}"
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        store.set(f"phd/waited/{rank}", waited)
        deadline = time.monotonic() + REPORT_SECONDS
        others = set(range(world_size)) - {rank}
        while others and time.monotonic() < deadline:
            others = {other for other in others if not store.check([f"phd/waited/{other}"])}
            time.sleep(0.2)
    except (RuntimeError, ValueError):
        return message + " (and the store of the process group is gone: the node of rank 0 may be lost)"
    if not others:
        return message + "; every rank says so: the network may be at fault"
    names = ", ".join(map(str, sorted(others)))
    return f"{message}; no word from rank(s) {names}: hung or dead"


def _collective(error: BaseException) -> str:
    """The collective and where it was called from, by the frames of the error."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [number for number, frame in enumerate(frames) if "torch/distributed" in frame.filename]
    if not inside:
        return f"{frames[-1].name} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
    names = [frames[number].name for number in inside if frames[number].name != "wrapper"]
    caller = frames[inside[0] - 1]
    return f"{names[0] if names else 'a collective'} called at {Path(caller.filename).name}:{caller.lineno}"

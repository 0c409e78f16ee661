"""One line on errors of a training whose cause and remedy are known."""

import errno
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

OURS = Path(__file__).parents[1]

GUARD = Path(__file__).with_name("guard.py")
"""The file of the run guard, which is in the traceback of every error, whoever raised it."""


def explain(error: BaseException, disk_full: bool = False) -> str | None:
    """One line on an error whose cause and remedy are known, or None."""
    if disk_full:
        remedy = remedy_for(OSError(errno.ENOSPC, ""))
        return f"the disk is full: what was being written is lost, what was saved before is whole; {remedy}"
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "out of GPU memory: lower --micro-batch-size, or recompute (--recompute-granularity full "
            "--recompute-method uniform --recompute-num-layers 1); phd plan tells what a command line takes"
        )
    system_error = next((e for e in _chain(error) if isinstance(e, OSError) and e.errno), None)
    if isinstance(system_error, FileNotFoundError):
        return f"{system_error.filename} is missing: {remedy_for(system_error)}"
    if system_error is not None and system_error.errno in (errno.EROFS, errno.EACCES, errno.EDQUOT):
        return f"cannot write {system_error.filename} ({system_error.strerror}): {remedy_for(system_error)}"
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
    return any(OURS in Path(frame.filename).parents and Path(frame.filename) != GUARD for frame in frames)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def remedy_for(error: OSError) -> str:
    """What to do about it before the same command is started again."""
    remedies = {
        errno.ENOSPC: "make room (--keep-last-checkpoints removes old ones) and start the same command again",
        errno.EDQUOT: "make room within the quota and start the same command again",
        errno.ENOENT: "put it back and start the same command again",
    }
    return remedies.get(error.errno or 0, "choose a --run-dir that can be written")

"""How errors are reported: one line, from one rank, where the cause is known; the traceback goes into the
run folder.
"""

import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from phd.run.status import refused
from phd.training.resume import CannotGoOn

ERRORS = "errors"
"""In a run folder: the tracebacks of every rank."""

MISTAKES = (
    *(TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError, ImportError),
    *(ArithmeticError, CheckpointingException),
)
"""Before the end of the first iteration these errors are caused by flags and files, and each start would
meet them again."""

MACHINE = re.compile(
    r"connect|peer|socket|store|gloo|nccl|cuda|cublas|driver|time|broken pipe|worker|shared memory|bus error",
    re.IGNORECASE,
)
"""Words of a RuntimeError that another start may not meet."""

PARTS = ("/megatron/core/", "/megatron/training/", "/torch/nn/", "/torch/distributed/checkpoint/")
"""Where such an error is raised that is one of flags or shapes."""

TOLD = "phd/told"


class OnlyHere(ValueError):
    """A refusal that a single rank makes, and has to report."""


def refuse_start(error: ValueError) -> NoReturn:
    """End before the training began: the first rank of each node prints the reason, which is the same on
    all.
    """
    if isinstance(error, CannotGoOn) and error.run_folder and os.environ["RANK"] == "0":
        refused(error.run_folder, str(error))
    if os.environ["LOCAL_RANK"] == "0" or isinstance(error, OnlyHere):
        sys.exit(f"pretrain_phd.py: error: {error}")
    sys.exit(1)


def tell(rank: int, cause: str) -> None:
    """Print the line, unless another rank has reported an error already."""
    if _first_to_tell():
        print(f"pretrain_phd.py: error: rank {rank}: {cause}", file=sys.stderr)


def _first_to_tell() -> bool:
    with contextlib.suppress(RuntimeError, ValueError):  # the store may be gone
        if torch.distributed.is_initialized():
            store = torch.distributed.distributed_c10d._get_default_store()
            return bool(store.add(TOLD, 1) == 1)
    return os.environ.get("LOCAL_RANK", "0") == "0"  # before the process group: all ranks do the same


def told_already() -> bool:
    """Whether another rank has reported a known cause, so that an error here is its consequence."""
    with contextlib.suppress(RuntimeError, ValueError):
        if torch.distributed.is_initialized():
            return bool(torch.distributed.distributed_c10d._get_default_store().check([TOLD]))
    return False


def keep_traceback(folder: Path | None, rank: int, error: BaseException) -> Path | None:
    """Append it to the rank's file in the run folder; None where there is none, or no room."""
    if folder is None:
        return None
    file = folder / ERRORS / f"rank{rank}.txt"
    try:
        file.parent.mkdir(exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(f"{time.strftime('%F %T')}\n{''.join(traceback.format_exception(error))}\n")
    except OSError:
        return None
    return file


def mistake(error: BaseException, kept: Path | None = None) -> str | None:
    """One line on an error that each start would meet again, as it comes of flags and files: in set-up, in
    loading, or in the first iteration. None for one of the machine or the network.

    Args:
        kept: where the traceback lies.
    """
    if _trained(error):
        return None
    causes = [error]
    if isinstance(error, CheckpointException):  # what it met on each rank
        causes = [cause for cause, _ in error.failures.values()]
    if not causes or not all(map(_comes_again, causes)):
        return None
    said = " ".join(str(causes[0]).split())[:300]
    where = (
        "the checkpoint does not load" if _within(error, "load_checkpoint") else "the training does not start"
    )
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said += f", at {Path(frame.filename).name}:{frame.lineno}"
    more = f"; the traceback is in {kept}" if kept else ""
    return f"{where} ({type(causes[0]).__name__}: {said}): correct the flag or file that it speaks of{more}"


def _comes_again(error: BaseException) -> bool:
    if isinstance(error, MISTAKES):
        return True
    if type(error) is not RuntimeError or MACHINE.search(str(error)):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    # One that came from another rank, or through a pickle, has no frames any more.
    return not frames or any(part in frames[-1].filename for part in PARTS)


def _trained(error: BaseException) -> bool:
    """Whether an iteration was completed before the error."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        code, known = frame.f_code, frame.f_locals
        loop = code.co_name in ("pretrain", "train") and code.co_filename.endswith("/training/training.py")
        if loop and known.get("iteration", 0) > getattr(known.get("args"), "iteration", 0):
            return True
    return False


def gave_up_loading(stop: SystemExit) -> bool:
    """Whether Megatron ended the process while it was loading, which it does without an error."""
    return _within(stop, "load_checkpoint") or _within(stop, "load_args_from_checkpoint")


def _within(error: BaseException, function: str) -> bool:
    return function in _functions(error)


def _functions(error: BaseException) -> Iterator[str]:
    return (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))

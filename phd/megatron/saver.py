"""The process that saves asynchronously (--async-save), watched. It holds a second copy of its rank's part of
the model, so it is what a host short of memory kills first; Megatron would wait for it for ever. It in turn
would outlive a rank that is killed.
"""

import contextlib
import os
import signal
import threading
from multiprocessing import connection, parent_process
from multiprocessing.process import BaseProcess

_watched: BaseProcess | None = None
_death: str | None = None


class SaverDied(RuntimeError):
    """The process that saves died; what it was writing is lost."""


def watch(process: BaseProcess) -> None:
    """If it ends before :func:`let_go` is called, the main thread gets SIGTERM, and :func:`check` raises
    there.
    """
    global _watched, _death
    _watched, _death = process, None
    threading.Thread(target=_wait, args=(process,), daemon=True).start()


def let_go() -> None:
    """The process is about to end normally."""
    global _watched
    _watched = None


def check() -> None:
    """Called by the handler of SIGTERM.

    Raises:
        SaverDied: the signal came from here.
    """
    global _death
    if _death is not None:
        death, _death = _death, None
        raise SaverDied(
            f"the process that saves (--async-save) {death}; the checkpoints before are whole. A host that "
            "runs out of memory kills it first, for it holds a second copy of what this rank trains: "
            "give the job more memory, or save without --async-save; then start the same command again"
        )


def end_with_parent() -> None:
    """Called by a process of multiprocessing: it is killed once its parent has ended, however that was (on
    Linux). It would keep memory of the host and the GPU from the next start, and write where that saves.
    """
    if hasattr(os, "pidfd_open"):
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is None or parent.pid is None:
        return
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        # Not its sentinel, a pipe that other children of the parent hold open.
        connection.wait([os.pidfd_open(parent.pid)])
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(process: BaseProcess) -> None:
    global _death
    connection.wait([process.sentinel])
    if process is not _watched:
        return
    process.join()
    code = process.exitcode or 0
    _death = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    # A signal, for the main thread may be inside a queue's lock. Not interrupt_main(): that wakes nobody.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

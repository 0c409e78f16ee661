"""Starts of pretrain_phd.py that a test may kill: processes forked from one that has Megatron imported.

Each takes the time of its own work alone (a new process would import Megatron for ten seconds), and is a
process of its own: SIGKILL ends it as it would end any.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.world import ROOT, free_port

TIMEOUT_S = 300


class Start:
    """One start of pretrain_phd.py with one rank; its output goes to ``log``.

    Asynchronous saves start processes that import the main module again, and a DataLoader forks its workers:
    they take a :class:`FreshStart`.
    """

    def __init__(self, flags: list[str], log: Path, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.starts_preload"])
        self.log = log
        self._process: Any = context.Process(target=_run, args=(flags, str(log), environment))
        self._process.start()

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Poll until it is true; False if the process ends before."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if not self._process.is_alive():
                return condition()
            assert time.monotonic() < deadline, self.output()[-3000:]
            time.sleep(0.005)
        return True

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def children(self) -> list[int]:
        """The processes that it has started, and theirs."""
        found = _children(self._process.pid)
        for pid in found:
            found += _children(pid)
        return found

    def kill_wandb(self) -> None:
        """SIGKILL to W&B's own process."""
        (core,) = _children(self._process.pid, "wandb-core")
        os.kill(core, signal.SIGKILL)

    def end(self) -> int:
        """Its exit code, negative for a signal. What a kill has orphaned is killed too."""
        self._process.join(TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {TIMEOUT_S} s: {self.output()[-3000:]}")
        assert self._process.exitcode is not None
        return self._process.exitcode

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class FreshStart(Start):
    """A start as from a shell."""

    def __init__(self, flags: list[str], log: Path, **environment: str) -> None:
        self.log = log
        command = [sys.executable, str(ROOT / "pretrain_phd.py"), *flags]
        with log.open("ab") as output:
            popen = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | environment, start_new_session=True
            )
        self._process = _Joinable(popen)

    def kill_saver(self) -> None:
        """SIGKILL to the process that saves asynchronously, the only child of the fork server."""
        (server,) = _children(self._process.pid, "multiprocessing.forkserver")
        (saver,) = _children(server)
        os.kill(saver, signal.SIGKILL)

    def kill_worker(self) -> None:
        """SIGKILL to a worker of a DataLoader."""
        os.kill(_children(self._process.pid)[0], signal.SIGKILL)


def _children(pid: int, command: str = "") -> list[int]:
    listed = subprocess.run(
        ["pgrep", "--parent", str(pid), "--full", command], capture_output=True, text=True
    )
    return [int(line) for line in listed.stdout.split()]


class _Joinable:
    """A subprocess.Popen with multiprocessing's names."""

    def __init__(self, popen: subprocess.Popen) -> None:
        self._popen, self.pid, self.kill = popen, popen.pid, popen.kill

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def join(self, timeout: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)

    @property
    def exitcode(self) -> int | None:
        return self._popen.poll()


def _run(flags: list[str], log: str, environment: dict[str, str]) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        | environment
    )
    os.chdir(Path(log).parent)
    sys.argv = [str(ROOT / "pretrain_phd.py"), *flags]
    import pretrain_phd

    pretrain_phd.main()

"""Starts of pretrain_phd.py that a test may kill: processes forked from one that has Megatron imported.

Each takes the time of its own work alone (a new process would import Megatron for ten seconds), and is a
process of its own: SIGKILL ends it as it would end any.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.world import ROOT, free_port

TIMEOUT_S = 120


class Start:
    """One start of pretrain_phd.py with one rank; its output goes to ``log``."""

    def __init__(self, flags: list[str], log: Path, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.starts_preload"])
        self.log = log
        self._process = context.Process(target=_run, args=(flags, str(log), environment))
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

    def end(self) -> int:
        """Its exit code, negative for a signal."""
        self._process.join(TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {TIMEOUT_S} s: {self.output()[-3000:]}")
        assert self._process.exitcode is not None
        return self._process.exitcode

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _run(flags: list[str], log: str, environment: dict[str, str]) -> None:
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

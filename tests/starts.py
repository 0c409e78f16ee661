"""Starts of pretrain_phd.py that a test may kill: processes forked from one that has Megatron imported.

Each takes the time of its own work alone (a new process would import Megatron for ten seconds), and is a
process of its own: SIGKILL ends it as it would end any. Where a signal must meet a certain moment, the
process sends it to itself there: see :func:`signal_before` and :func:`signal_after`.
"""

import contextlib
import multiprocessing.forkserver
import multiprocessing.util
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.world import ROOT, fork_server

SCRIPT = str(ROOT / "pretrain_phd.py")
TIMEOUT_S = 300
FORK_SERVER = "phd-forkserver"
"""Name of the process of which asynchronous saves fork theirs."""


def nothing() -> None:
    """What most starts do before they begin."""


class Start:
    """One start of pretrain_phd.py with one rank; its output goes to ``log``."""

    def __init__(
        self, flags: list[str], log: Path, before: Callable[[], None] = nothing, **environment: str
    ) -> None:
        """``before`` is called in the process before it begins."""
        self.log = log
        self._process: Any = fork_server().Process(target=_run, args=(flags, str(log), before, environment))
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

    def wait_until_stopped(self) -> None:
        """By SIGSTOP, which it sends to itself."""
        assert self.wait_for(lambda: _state(self._process.pid) == "T"), self.output()[-3000:]

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def children(self) -> list[int]:
        """The processes that it has started, and theirs."""
        found = _children(self._process.pid)
        for pid in found:
            found += _children(pid)
        return found

    def kill_saver(self) -> None:
        """SIGKILL to the process that saves asynchronously, the only child of the fork server."""
        (server,) = _children(self._process.pid, "--exact", FORK_SERVER)
        (saver,) = _children(server)
        os.kill(saver, signal.SIGKILL)

    def kill_worker(self) -> None:
        """SIGKILL to a worker of a DataLoader."""
        os.kill(_children(self._process.pid)[0], signal.SIGKILL)

    def kill_wandb(self) -> None:
        """SIGKILL to W&B's own process."""
        (core,) = _children(self._process.pid, "--full", "wandb-core")
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
        return self.log.read_text(errors="replace") if self.log.is_file() else ""


class FreshStart(Start):
    """A start as from a shell: with --async-save twenty seconds of imports."""

    def __init__(self, flags: list[str], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [sys.executable, SCRIPT, *flags],
                stdout=output,
                stderr=output,
                env=os.environ | environment,
                start_new_session=True,
            )
        self._process = _Joinable(popen)


def running(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    return _state(pid) not in ("", "Z")


def signal_before(what: str, number: signal.Signals) -> None:
    """Send this process a signal right before it does what the pattern says, as Python audits it: "open FILE
    MODE", "os.mkdir FOLDER", "os.rename FROM TO", "os.remove FILE", "shutil.rmtree FOLDER".
    """
    pattern = re.compile(what)

    def watch(event: str, args: tuple) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree") and pattern.match(
            f"{event} {args[0]} {args[1]}"
        ):
            os.kill(os.getpid(), number)

    sys.addaudithook(watch)


def signal_after(signals: dict[int, signal.Signals]) -> None:
    """Send this process a signal right after it has recorded an iteration."""
    from phd.run.recorder import Recorder

    write = Recorder.write

    def write_and_signal(self: Recorder, kind: str, iteration: int, *args: Any, **kwargs: Any) -> None:
        write(self, kind, iteration, *args, **kwargs)
        if kind == "train" and iteration in signals:
            os.kill(os.getpid(), signals[iteration])

    setattr(Recorder, "write", write_and_signal)  # noqa: B010


def _children(pid: int, *named: str) -> list[int]:
    listed = subprocess.run(["pgrep", "--parent", str(pid), *named], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def _state(pid: int) -> str:
    """R, S, D, T (stopped), Z (zombie), and so on; nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):  # it may go while it is read
        return ""


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


def _run(flags: list[str], log: str, before: Callable[[], None], environment: dict[str, str]) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    os.environ.update(environment)
    os.chdir(Path(log).parent)
    multiprocessing.set_start_method(None, force=True)  # what it is in a new interpreter
    setattr(multiprocessing.util, "spawnv_passfds", _fork_or_spawn)  # noqa: B010
    before()
    sys.argv = [SCRIPT, *flags]
    runpy.run_path(SCRIPT, run_name="__main__")


_spawn = multiprocessing.util.spawnv_passfds


def _fork_or_spawn(path: Any, args: list[Any], passfds: list[int]) -> int:
    """Fork the fork server of asynchronous saves, which a start from a shell runs in a new interpreter: it
    would import Megatron, and this process has. It has the same open files, handlers of signals and memory.
    """
    if "from multiprocessing.forkserver import main" not in args[-1]:
        return _spawn(path, args, passfds)
    if pid := os.fork():
        return pid
    code = 1
    try:
        Path("/proc/self/comm").write_text(FORK_SERVER)
        setattr(multiprocessing.forkserver._forkserver, "_lock", threading.Lock())  # noqa: B010 (held by us)
        for open_file in map(int, os.listdir("/proc/self/fd")):
            if open_file > 2 and open_file not in passfds:
                with contextlib.suppress(OSError):  # the one by which they were listed
                    os.close(open_file)
        exec(args[-1])
        code = 0
    finally:
        os._exit(code)

"""A world of gloo ranks that is started once and runs many jobs: importing Megatron takes 10 s a process.

``World.pretrain(flags, ranks=n)`` runs pretrain_phd.py's main() on n of the processes as torchrun would, and
returns what each rank printed. A rank that fails or hangs takes the world down; the next job gets a new one.
"""

import contextlib
import faulthandler
import gc
import io
import itertools
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 540  # only a hang reaches it; less than pytest's own, so that the rank is named

READY = "ready"


class RankFailed(AssertionError):
    """A rank raised, exited with an error, or did not answer in time."""


@contextlib.contextmanager
def meeting_point(ranks: int) -> Iterator[dict[str, str]]:
    """torchrun's environment for ``ranks`` processes that meet at a store of this process, as torchrun's
    workers meet at the agent's. The operating system chose its port and nobody can take it in between.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {
        **{"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)},
        **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"},
    }


def fork_server() -> multiprocessing.context.ForkServerContext:
    """The one of this test process, which has Megatron imported. It runs from here on, whoever else asks for
    one (a benchmark has a fork server of its own that knows torch alone).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.starts_preload"])
    multiprocessing.forkserver.ensure_running()
    return context


class World:
    """Up to ``size`` ranks on this machine."""

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self._stacks = Path(tempfile.mkdtemp(prefix="phd-stacks-"))
        self._ranks: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def start(self) -> None:
        """Start the ranks if they are not there. A test process imports Megatron once, for all its ranks."""
        if self._ranks:
            return
        context = fork_server()
        for _ in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, str(self._stacks)))
            process.start()
            theirs.close()
            self._ranks.append((process, ours))
        for _, connection in self._ranks:
            assert connection.recv() == READY

    def pid(self) -> int:
        """Of rank 0."""
        self.start()
        pid = self._ranks[0][0].pid
        assert pid is not None
        return pid

    def close(self) -> None:
        """End the ranks; each ends by itself when its pipe closes, and so do its own children."""
        for _, connection in self._ranks:
            connection.close()
        for process, _ in self._ranks:
            process.join(5)
            process.kill()
            process.join()
        self._ranks = []

    def run(self, job: Callable[..., Any], *args: Any, ranks: int = 1) -> list[Any]:
        """Call ``job(*args)`` on ranks 0..n-1 with torchrun's environment set; one result a rank."""
        self.start()
        rank_of: dict[Any, int] = {ours: rank for rank, (_, ours) in enumerate(self._ranks[:ranks])}
        results: dict[int, Any] = {}
        with meeting_point(ranks) as environment:
            for connection, rank in rank_of.items():
                connection.send(({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, job, args))
            while waiting := [connection for connection, rank in rank_of.items() if rank not in results]:
                ready: list[Any] = wait(waiting, TIMEOUT_S)
                if not ready:
                    late = [rank_of[connection] for connection in waiting]
                    self._fail(late[0], ranks, f"no answer in time\n{self._where(late)}")
                for connection in ready:
                    rank = rank_of[connection]
                    try:
                        ok, result = connection.recv()
                    except EOFError:
                        self._fail(rank, ranks, "the process ended")
                    if not ok:
                        # one that has answered is as good as new, if nobody waits for it in a collective
                        self._fail(rank, ranks, result, close=ranks > 1)
                    results[rank] = result
        return [results[rank] for rank in range(ranks)]

    def _fail(self, rank: int, ranks: int, why: str, *, close: bool = True) -> NoReturn:
        if close:
            self.close()
        raise RankFailed(f"rank {rank} of {ranks}: {why}")

    def _where(self, ranks: list[int]) -> str:
        """What each of these ranks and its children are doing: stacks of their threads, which they write when
        they are asked to.
        """
        found = []
        for rank in ranks:
            pid = self._ranks[rank][0].pid
            assert pid is not None
            forked = subprocess.run(["pgrep", "--parent", str(pid)], capture_output=True, text=True).stdout
            for process in (pid, *map(int, forked.split())):
                os.kill(process, signal.SIGQUIT)
            file, deadline = self._stacks / str(pid), time.monotonic() + 10
            while not file.stat().st_size and time.monotonic() < deadline:
                time.sleep(0.01)
            found.append(f"rank {rank}:\n{file.read_text()}")
        return "\n".join(found)

    def pretrain(self, flags: list[str], ranks: int = 1) -> str:
        """Run pretrain_phd.py with these flags; returns what the ranks printed, joined."""
        return "".join(self.run(run_pretrain, flags, ranks=ranks))


def _serve(connection: Connection, stacks: str) -> None:
    faulthandler.register(signal.SIGQUIT, file=open(f"{stacks}/{os.getpid()}", "w"))  # noqa: SIM115
    os.chdir(tempfile.mkdtemp(prefix="phd-rank-"))
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    connection.send(READY)
    for job_number in itertools.count():
        if job_number < 2:  # half a million objects of imports, through which the looks for what is left went
            gc.collect()
            gc.freeze()
        try:
            environment, job, args = connection.recv()
        except EOFError:
            return
        os.environ.update(environment)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                result = job(*args)
            connection.send((True, result))
        except BaseException:
            connection.send((False, f"{output.getvalue()[-6000:]}\n{traceback.format_exc()}"))


@contextlib.contextmanager
def megatron_globals() -> Any:
    """Leave no Megatron state behind: pretrain() asserts that its globals are not initialised."""
    import phd.megatron  # noqa: F401 (before Megatron)

    # isort: split
    import torch
    from megatron.core import parallel_state, rerun_state_machine
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.core.tensor_parallel import random
    from megatron.training import global_vars, training

    from phd.megatron.loop import FUNCTIONS

    loop = {name: getattr(training, name) for name in FUNCTIONS}
    # The first run of a process decides which kind of generators all its runs have. CUDA graphs' need CUDA.
    random.initialize_rng_tracker(force_reset=True)
    try:
        yield
    finally:
        for name, function in loop.items():  # a HookedLoop holds its hooks, and they the model
            setattr(training, name, function)
        if (writer := global_vars.get_tensorboard_writer()) is not None:
            writer.close()  # and ends its thread
        global_vars.destroy_global_vars()
        # Set by the first pretrain() of a process; the next one would reduce it over ranks that have none.
        training._STARTUP_TIMESTAMPS["program_start"] = None
        destroy_num_microbatches_calculator()
        rerun_state_machine.destroy_rerun_state_machine()
        parallel_state.destroy_model_parallel()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        _let_go_of_process_groups()


def _let_go_of_process_groups() -> None:
    """A gloo group that something still holds keeps threads that wake up a hundred times a second; with those
    of all runs before, a rank had a thousand.
    """
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    RotaryEmbedding.forward.cache_clear()  # holds the object, which holds its group
    for held in gc.get_objects():
        if type(held) is DistributedDataParallel:
            held.__dict__.clear()  # a circle with hooks of autograd's, which gc does not see
    gc.collect()


def run_pretrain(flags: list[str]) -> str:
    import pretrain_phd

    output = io.StringIO()
    sys.argv = ["pretrain_phd.py", *flags]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), megatron_globals():
        try:
            pretrain_phd.main()
        except SystemExit as stop:
            if stop.code not in (None, 0):
                raise RuntimeError(f"{output.getvalue()[-4000:]}\nexit: {stop.code}") from stop
    return output.getvalue()

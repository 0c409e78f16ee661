"""A world of gloo ranks that is started once and runs many jobs: importing Megatron takes 10 s a process.

``World.pretrain(flags, ranks=n)`` runs pretrain_phd.py's main() on n of the processes as torchrun would, and
returns what each rank printed. A rank that fails or hangs takes the world down; the next job gets a new one.
"""

import contextlib
import gc
import io
import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 240


class RankFailed(AssertionError):
    """A rank raised, exited with an error, or did not answer in time."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class World:
    """Up to ``size`` ranks on this machine."""

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self._ranks: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for _ in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,))
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

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
        if not self._ranks:
            self._start()
        environment = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        used = self._ranks[:ranks]
        for rank, (_, connection) in enumerate(used):
            connection.send(({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, job, args))
        results = []
        for rank, (_, connection) in enumerate(used):
            try:
                ok, result = connection.recv() if connection.poll(TIMEOUT_S) else (False, "no answer in time")
            except EOFError:
                ok, result = False, "the process ended"
            if not ok:
                self.close()
                raise RankFailed(f"rank {rank} of {ranks}: {result}")
            results.append(result)
        return results

    def pretrain(self, flags: list[str], ranks: int = 1) -> str:
        """Run pretrain_phd.py with these flags; returns what the ranks printed, joined."""
        return "".join(self.run(run_pretrain, flags, ranks=ranks))


def _serve(connection: Connection) -> None:
    os.chdir(tempfile.mkdtemp(prefix="phd-rank-"))
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    while True:
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
    import phd.model  # noqa: F401 (before Megatron)

    # isort: split
    import torch
    from megatron.core import parallel_state, rerun_state_machine
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.training import global_vars, training

    from phd.model import compat

    try:
        yield
    finally:
        compat.observe(None)  # the loop's functions hold the last observer, and that one the model
        global_vars.destroy_global_vars()
        # Set by the first pretrain() of a process; the next one would reduce it over ranks that have none.
        training._STARTUP_TIMESTAMPS["program_start"] = None
        destroy_num_microbatches_calculator()
        rerun_state_machine.destroy_rerun_state_machine()
        if torch.distributed.is_initialized():
            parallel_state.destroy_model_parallel()
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

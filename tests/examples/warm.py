"""A Python for the examples that starts nothing cold: a rank of the test world trains in place of torchrun's,
and runs the `phd` commands.

A script or a walkthrough starts interpreters for every training and every command, each of which imports
Megatron for ten seconds; here they reach one that has it.
"""

import contextlib
import io
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path

from tests.world import RankFailed, World, run_pretrain

COMMAND = """#!{python} -SE
import os
import signal
import sys
from multiprocessing.connection import Client

with Client({address!r}) as server:
    server.send(sys.argv[1:])
    rank = server.recv()
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(rank, number))  # as torchrun hands it on
    server.send("begin")
    code, output = server.recv()
sys.stdout.write(output)
sys.exit(code)
"""


class WarmPython:
    """``path`` is the command; ``calls`` what it was called with, flags of pretrain_phd.py or of `phd`;
    ``train`` what a rank runs for a training.
    """

    def __init__(self, path: Path, world: World) -> None:
        self.path = path
        self.calls: list[list[str]] = []
        self.train: Callable[[list[str]], str] = run_pretrain
        self._world = world

    def answer(self, words: list[str]) -> tuple[int, str]:
        """Exit status and output of ``python WORDS``."""
        program, arguments = words[1], words[2:]
        assert words[0] == "-m" and program in ("torch.distributed.run", "phd.commands.cli"), words
        try:
            if program == "phd.commands.cli":
                self.calls.append(arguments)
                return self._world.run(run_phd, arguments)[0]
            (at,) = (i for i, word in enumerate(arguments) if word.endswith("/pretrain_phd.py"))
            self.calls.append(arguments[at + 1 :])
            return 0, self._world.run(self.train, arguments[at + 1 :])[0]
        except RankFailed as error:
            return 1, str(error)


def run_phd(arguments: list[str]) -> tuple[int, str]:
    from phd.commands.cli import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(arguments)
    return code, output.getvalue()


@contextlib.contextmanager
def warm_python(world: World) -> Iterator[WarmPython]:
    with tempfile.TemporaryDirectory() as folder, Listener(family="AF_UNIX") as listener:
        python = WarmPython(Path(folder, "python"), world)
        python.path.write_text(COMMAND.format(python=sys.executable, address=listener.address))
        python.path.chmod(0o755)

        def serve() -> None:
            while True:
                with listener.accept() as client:
                    if (words := client.recv()) is None:
                        return
                    client.send(world.pid())
                    client.recv()  # now no signal ends it
                    client.send(python.answer(words))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield python
        finally:
            with Client(listener.address) as last:
                last.send(None)
            thread.join()

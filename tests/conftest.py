"""Settings that every test process and the ranks it starts share."""

import multiprocessing.util
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext

import pytest

# Several ranks share the machine's cores in one test; more threads than cores only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"
# Images of containers set it, and then each interpreter compiles torch, transformers and Megatron for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from tests.models import ids, make_model, tiny_folder  # noqa: E402, F401 (fixtures of several folders)
from tests.trainings import base_flags, data, packed_data, start_flags  # noqa: E402, F401 (the same)
from tests.world import World, fork_server  # noqa: E402

pytest_plugins = ["tests.lane"]


def pytest_configure() -> None:
    """Take the signals that a shell's background jobs and nohup ignore: so would all that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What wandb, torchrun and compilers leave behind goes at the end; what tests keep in tmp_path stays."""
    tmp_path_factory.getbasetemp()
    multiprocessing.util.get_temp_dir()  # removed by itself, when this process ends
    compiled = f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"  # worth keeping for the next run
    with (
        tempfile.TemporaryDirectory(prefix="phd-tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", compiled))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session")
def forks() -> ForkServerContext:
    """The fork server with its imports done, so that it is not the first test that takes so long."""
    context = fork_server()
    process = context.Process(target=int)
    process.start()
    process.join()
    return context


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Four gloo ranks for all tests."""
    world = World(4)
    world.start()  # here, so that it is not the first test that takes so long
    yield world
    world.close()

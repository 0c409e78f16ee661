"""Settings that every test process and the ranks it starts share."""

import multiprocessing.util
import os
import tempfile
from collections.abc import Iterator

import pytest

# Several ranks share the machine's cores in one test; more threads than cores only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"

from tests.models import ids, make_model, tiny_folder  # noqa: F401 (fixtures of several folders)
from tests.world import World


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
def world() -> Iterator[World]:
    """Four gloo ranks for all tests."""
    world = World(4)
    yield world
    world.close()

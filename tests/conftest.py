"""Settings that every test process and the ranks it starts share."""

import os
from collections.abc import Iterator

import pytest

# Several ranks share the machine's cores in one test; more threads than cores only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"

from tests.models import ids, make_model, tiny_folder  # noqa: F401 (fixtures of several folders)
from tests.world import World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Four gloo ranks for all tests."""
    world = World(4)
    yield world
    world.close()

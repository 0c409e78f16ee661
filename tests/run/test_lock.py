"""One job at a time holds a run folder."""

import json
import os
import signal
import subprocess
import sys

import pytest

from phd.run.lock import LOCK_FILE, RunLock

HOLD = """
import signal, sys
from pathlib import Path
from phd.run.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
signal.pause()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    environment = os.environ | {"SLURM_JOB_ID": "4242"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_refused_and_told_who_holds_it(tmp_path, other):
    with pytest.raises(ValueError, match=rf"being written by another job \(.*pid {other.pid}, job id 4242"):
        RunLock(tmp_path)


def test_a_killed_holder_leaves_it_free(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    RunLock(tmp_path).release()


def test_it_can_be_released(tmp_path):
    lock = RunLock(tmp_path)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    lock.release()
    RunLock(tmp_path).release()

"""Worker processes: order, memory, and deaths on either side."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.documents import Batch
from data_tools.encode import Settings, encode_batches

ROOT = Path(__file__).parents[2]
PATH = Path("in.txt")


def test_order_and_read_ahead(tokenizer_model):
    """Slow batches first; never more than two batches a worker are read ahead."""
    read = []

    def batches():
        for i in range(20):
            read.append(i)
            yield Batch(PATH, [1, 1], [b"word " * (100_000 if i < 3 else 1), b"x" * (i + 1)])

    for done, encoded in enumerate(
        encode_batches(batches(), Settings(tokenizer_model, "text", True), workers=2)
    ):
        assert len(read) <= done + 4
        assert encoded.input_bytes == 5 * (100_000 if done < 3 else 1) + done + 1
        assert sum(encoded.lengths) == len(encoded.ids)
        assert encoded.ids[-1] == 2
    assert done == 19


def test_killed_worker_is_an_error(tokenizer_model):
    """And not a wait without end."""

    def batches():
        yield Batch(PATH, [1], [b"a"])
        yield Batch(PATH, [1], [b"b"])
        for child in children(os.getpid()):
            os.kill(child, signal.SIGKILL)
        while True:
            yield Batch(PATH, [1], [b"c"])

    with pytest.raises(ValueError, match="--workers 1: one of them was killed"):
        list(encode_batches(batches(), Settings(tokenizer_model, "text", False), workers=1))


def test_workers_leave_with_a_killed_parent(tokenizer_model):
    code = (
        "import sys; from pathlib import Path\n"
        "from data_tools.documents import Batch; from data_tools.encode import Settings, encode_batches\n"
        "def batches():\n"
        "    while True: yield Batch(Path('in.txt'), [1], [b'a'])\n"
        "if __name__ == '__main__':\n"
        "    for _ in encode_batches(batches(), Settings(Path(sys.argv[1]), 'text', False), 2):\n"
        "        print('.', flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tokenizer_model)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Worker processes of ``pid`` (multiprocessing's resource tracker is not one)."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False

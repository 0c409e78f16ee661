"""Output that is lost ends no program."""

import os
import subprocess
import sys

import pytest

from tests.world import ROOT

PROGRAM = """
import os, sys
from phd.run.output import outlive_readers
outlive_readers()
print("sent \\xe9")
for stream in (sys.stdout, sys.stderr):
    for _ in range(50):
        print("x" * 8192, file=stream, flush=True)
os.write(int(sys.argv[1]), b"the end")
"""


def run(output: int, errors: int) -> None:
    """A program with these two; asserts that it gets to its end."""
    reader, writer = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(writer)],
        stdout=output, stderr=errors, pass_fds=[writer], timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    os.close(writer)
    with os.fdopen(reader) as told:
        assert told.read() == "the end"
    assert done.returncode == 0


@pytest.mark.parametrize("reader_is", ["gone", "asleep"])
def test_a_pipe(reader_is):
    """Nobody reads, or nobody reads in time from a pipe that does not block."""
    reader, writer = os.pipe()
    if reader_is == "gone":
        os.close(reader)
    else:
        os.set_blocking(writer, False)
    run(writer, writer)
    os.close(writer)
    if reader_is == "asleep":
        with os.fdopen(reader, "rb") as output:
            assert output.readline() == b"sent \\xe9\n"


def test_a_full_disk():
    with open("/dev/full", "wb") as full:
        run(full.fileno(), full.fileno())


def test_all_of_it_arrives(tmp_path):
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        run(out.fileno(), err.fileno())
    many = ("x" * 8192 + "\n") * 50
    assert (tmp_path / "out").read_text() == "sent \\xe9\n" + many
    assert (tmp_path / "err").read_text() == many

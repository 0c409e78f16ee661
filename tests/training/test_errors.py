"""Errors whose cause and remedy are known."""

import errno
import os

import pytest


def explained(number: int, file: str) -> str | None:
    """The line on an error of the system that a save met, as Megatron hands it on."""
    from phd.training.errors import explain

    error = RuntimeError("Worker failure")
    error.__cause__ = OSError(number, os.strerror(number), file)
    return explain(error)


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (
            errno.EMFILE,
            "too many open files: raise `ulimit -Hn`, or make fewer data sets of them (phd data merge)",
        ),
        (
            errno.EDQUOT,
            "cannot write RUN/x (Disk quota exceeded): make room within the quota and start the same command "
            "again",
        ),
        (errno.EACCES, "cannot write RUN/x (Permission denied): choose a --run-dir that can be written"),
    ],
)
def test_errors_of_the_system(world, number, line):
    assert world.run(explained, number, "RUN/x") == [line]

"""Whether the tests notice a mistake: make those of tests/mutations.py one at a time, and run a few tests.

    python -m tools.mutate [NAME ...] [--list] [--baseline]

Each mutation goes into a copy of the tree in a temporary folder, so the working tree is never touched. Exit
status 1 unless the tests have caught all of them.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
LANE = "not gpu and not slurm and not slow and not vllm"
CAUGHT, SURVIVED, DOES_NOT_APPLY, NO_RESULT = "caught", "SURVIVED", "DOES NOT APPLY", "NO RESULT"


class Result(NamedTuple):
    """What the tests said to a tree."""

    state: str
    detail: str
    """The first test that failed, and why; or why there is no result."""
    seconds: float


def copy_tree(root: Path, target: Path) -> None:
    """Copy what git knows of or would add, as it lies there now."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0"):
        if (root / name).is_file():  # git lists what has been removed, too
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def apply(mutation: Mutation, root: Path) -> bool:
    """Whether ``mutation`` could be made: its old text stands in the file exactly once."""
    file = root / mutation.file
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text.count(mutation.old) != 1:
        return False
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    return True


def run_tests(tests: Sequence[str], root: Path) -> Result:
    """Run ``tests`` of the default lane in ``root`` up to the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", LANE, "--tb=no", "-rfE"]
    begin = time.monotonic()
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", *tests],
        cwd=root,
        # that tree comes before the installed one; wide enough for why a test failed
        env=os.environ | {"PYTHONPATH": str(root), "COLUMNS": "160"},
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - begin
    failed = re.search(r"^(?:FAILED|ERROR) (.+)$", run.stdout, re.MULTILINE)
    if run.returncode == 0:
        return Result(SURVIVED, "", seconds)
    if run.returncode == 1 and failed:
        return Result(CAUGHT, failed[1], seconds)
    said = (run.stdout + run.stderr).strip().splitlines() or [""]
    return Result(NO_RESULT, f"pytest ended with {run.returncode}: {said[-1]}", seconds)


def try_mutation(mutation: Mutation, root: Path = ROOT) -> Result:
    """Make ``mutation`` in a copy of ``root``, and run its tests there."""
    with tempfile.TemporaryDirectory(prefix="phd-mutation-") as folder:
        copy = Path(folder).resolve()
        copy_tree(root, copy)
        if not apply(mutation, copy):
            return Result(DOES_NOT_APPLY, f"{mutation.file} holds its old text never or more than once", 0.0)
        return run_tests(mutation.tests.split(), copy)


def try_nothing(mutations: Sequence[Mutation], root: Path = ROOT) -> Result:
    """Run all their tests in a copy without any mutation: they must pass."""
    tests = sorted({test for mutation in mutations for test in mutation.tests.split()})
    with tempfile.TemporaryDirectory(prefix="phd-mutation-") as folder:
        copy_tree(root, Path(folder).resolve())
        return run_tests(tests, Path(folder).resolve())


def chosen(names: Sequence[str]) -> list[Mutation]:
    """The mutations of these names; all without one.

    Raises:
        ValueError: there is no such mutation.
    """
    known = {mutation.name: mutation for mutation in MUTATIONS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no mutation is called {unknown[0]}: --list names them")
    return [known[name] for name in names or known]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutate",
        description="Whether the tests notice the mistakes of tests/mutations.py.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to try (default: all)")
    parser.add_argument("--list", action="store_true", help="name the mutations and their tests, run nothing")
    parser.add_argument("--baseline", action="store_true", help="first see that the tests pass without one")
    options = parser.parse_args(argv)
    try:
        mutations = chosen(options.names)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for mutation in mutations:
            print(f"{mutation.name} ({mutation.file}): {mutation.tests}")
        return 0
    width = max(len(mutation.name) for mutation in mutations)
    if options.baseline:
        result = try_nothing(mutations)
        print(f"{'(none)':{width}}  {result.seconds:6.1f} s  {result.state:14}  {result.detail}", flush=True)
        if result.state != SURVIVED:
            return 1
    left = 0
    for mutation in mutations:
        result = try_mutation(mutation)
        left += result.state != CAUGHT
        print(
            f"{mutation.name:{width}}  {result.seconds:6.1f} s  {result.state:14}  {result.detail}",
            flush=True,
        )
    print(f"{len(mutations) - left} of {len(mutations)} mutations caught")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())

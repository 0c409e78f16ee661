"""The lane's budget and its lists, on suites of their own."""

import json
import os
import subprocess
import sys

import pytest

from tests.lane import CPU_BUDGET_S, cpu_seconds
from tests.world import ROOT

BURN = f"import time; begin = time.process_time()\nwhile time.process_time() < begin + {0.5}: pass"
SUITE = f"""
import subprocess, sys
import pytest
import tests.lane

tests.lane.CPU_BUDGET_S = 0.3
BURN = {BURN!r}

def test_quick():
    pass

def test_busy():
    exec(BURN)

def test_busy_through_a_child():
    subprocess.run([sys.executable, "-c", BURN], check=True)

@pytest.mark.slow
def test_busy_and_slow():
    exec(BURN)

@pytest.fixture
def busy():
    exec(BURN)

def test_after_a_busy_fixture(busy):
    pass

def test_wrong():
    assert 1 == 2
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str], dict]:
    """What a run of SUITE printed, its list of failures and its record."""
    folder = tmp_path_factory.mktemp("lane")
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    options = "-p tests.lane -p no:cacheprovider --failures=failures.json --record=runs.json"
    command = [sys.executable, "-m", "pytest", *options.split()]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    failures, record = (json.loads((folder / name).read_text()) for name in ("failures.json", "runs.json"))
    return done.stdout, failures, record


def test_a_test_over_the_budget_fails_by_name(outcome):
    _, failures, _ = outcome
    assert {name.partition("::")[2] for name in failures} == {
        "test_busy",
        "test_busy_through_a_child",
        "test_wrong",
    }
    assert "test_suite.py::test_busy took 0." in failures["test_suite.py::test_busy"]
    assert "assert 1 == 2" in failures["test_suite.py::test_wrong"]


def test_the_slowest_are_listed(outcome):
    output, *_ = outcome
    table = output.partition("slowest of")[2].splitlines()
    (line,) = (line for line in table if line.endswith("::test_busy_and_slow"))
    wall, cpu = (float(part) for part in line.split()[0:3:2])
    assert wall >= cpu >= 0.5


def test_a_run_is_recorded(outcome):
    (run,) = outcome[-1]["runs"]
    assert (run["passed"], run["failed"], run["exit_status"]) == (3, 3, 1)
    assert run["cpu_seconds"] >= 1 and run["cores_of_others"] > -0.1


def test_time_of_a_child_counts_while_it_lives():
    before = cpu_seconds()
    child = subprocess.Popen(
        [sys.executable, "-c", f"{BURN}\nprint('done', flush=True)\ninput()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout is not None and child.stdout.readline() == "done\n"
        assert cpu_seconds() - before >= 0.45
        child.communicate("\n")
    assert 0.45 <= cpu_seconds() - before < CPU_BUDGET_S

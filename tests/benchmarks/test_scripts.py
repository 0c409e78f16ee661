"""Each benchmark starts as its documentation says: as a script, from the repository's root."""

import subprocess
import sys

import pytest

from tests.world import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_starts(script):
    command = [sys.executable, f"benchmarks/{script}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout


def test_tokenizing_end_to_end(tmp_path):
    """A tiny run of all methods that are installed."""
    command = [sys.executable, "benchmarks/tokenize.py", "--megabytes", "4", "--rounds", "1"]
    command += ["--output", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " NO " not in done.stdout, done.stdout
    assert "Written to" in done.stdout

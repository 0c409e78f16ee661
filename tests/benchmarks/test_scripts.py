"""Each benchmark starts as its documentation says: as a script, from the repository's root."""

import json
import subprocess
import sys

import pytest

from tests.world import ROOT

FILES = (ROOT / "benchmarks").glob("*.py")
SCRIPTS = sorted(path.name for path in FILES if "__main__" in path.read_text("utf-8"))
# Runs each script as the interpreter runs one, in a process forked from this, which has imported what takes
# long and nothing of the repository; prints each one's exit status and output as JSON.
STARTS = """
import json, os, runpy, sys, tempfile
import matplotlib.figure, torch, transformers.models.llama.modeling_llama

answers = {}
for script in sys.argv[1:]:
    with tempfile.TemporaryFile("w+") as output:
        if (child := os.fork()) == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.argv = [f"benchmarks/{script}", "--help"]
            sys.path[0] = os.path.abspath("benchmarks")
            del sys.modules["tokenize"]  # the standard library's, whose name one of the scripts has
            runpy.run_path(sys.argv[0], run_name="__main__")
            os._exit(99)  # none of them comes so far
        _, status = os.waitpid(child, 0)
        output.seek(0)
        answers[script] = os.waitstatus_to_exitcode(status), output.read()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str]]:
    command = [sys.executable, "-c", STARTS, *SCRIPTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_starts(script, answers):
    status, output = answers[script]
    assert status == 0, output
    assert "--output" in output


@pytest.mark.slow
def test_tokenizing_end_to_end(tmp_path):
    """A tiny run of all methods that are installed."""
    command = [sys.executable, "benchmarks/tokenize.py", "--megabytes", "4", "--rounds", "1"]
    command += ["--output", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " NO " not in done.stdout, done.stdout
    assert "Written to" in done.stdout

"""make demo in its shortened form, end to end: real steps on the standard library's text; then run again."""

import json
import os
import subprocess
import sys

import pytest

from examples.demo import run as demo
from tests.world import ROOT


def start(folder, mode="tiny") -> subprocess.CompletedProcess:
    environment = os.environ | {"DEMO": mode, "DEMO_FOLDER": str(folder)}
    command = [sys.executable, "-m", "examples.demo.run"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_demo_end_to_end_and_again(tmp_path):
    first = start(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    for name in ("1-vanilla-seed1", "2-PHD-CSWA-2-16-32-seed1"):
        assert (tmp_path / name / "done.json").exists()
        assert f"Generate with {name}" in first.stdout
    assert "stopped at step 4 on purpose; resuming from its checkpoint" in first.stdout
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert "PHD-CSWA-2-16-32" in json.dumps(json.loads((tmp_path / "comparison.json").read_text()))
    assert demo.PROMPT in first.stdout

    again = start(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("already done") >= 2

    (tmp_path / "settings.txt").write_text("others")
    changed = start(tmp_path)
    assert changed.returncode != 0
    assert "was made with other settings" in changed.stderr


def test_unknown_mode_is_refused(tmp_path):
    answer = start(tmp_path, mode="fast")
    assert answer.returncode == 2
    assert "DEMO=fast is not known" in answer.stdout


def test_plan_pairs_variants_and_seeds():
    settings = demo.choose("full")
    runs = demo.plan(settings, "full")
    assert len(runs) == 4 * len(settings.seeds)
    assert runs[0].phd_flags == ""
    doubled = [run.iterations for run in runs if "2x" in run.name]
    assert doubled == [2 * settings.iterations] * len(settings.seeds)

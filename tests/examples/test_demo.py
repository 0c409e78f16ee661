"""make demo in its shortened form, end to end: real steps on the standard library's text; then run again."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from examples.demo import run as demo
from tests.world import ROOT


def start(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DEMO": "tiny", "DEMO_FOLDER": str(folder)}
    command = [sys.executable, "-m", "examples.demo.run"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


def assert_told(folder: Path, output: str) -> None:
    for name in ("1-vanilla-seed1", "2-PHD-CSWA-2-16-32-seed1"):
        assert (folder / name / "done.json").exists()
        assert f"Generate with {name}" in output
    assert "stopped at step 4 on purpose; resuming from its checkpoint" in output
    assert (folder / "comparison.png").stat().st_size > 10_000
    assert "PHD-CSWA-2-16-32" in json.dumps(json.loads((folder / "comparison.json").read_text()))
    assert demo.PROMPT in output


def test_first_start(warm, tmp_path, monkeypatch, capfd):
    """The whole walkthrough on fewer samples, in a process that has Megatron imported."""
    tiny = demo.choose("tiny")
    fewer = tiny.training.replace("size 16", "size 2").replace("size 32", "size 4")
    monkeypatch.setattr(demo, "choose", lambda mode: replace(tiny, training=fewer))
    monkeypatch.setenv("DEMO", "tiny")
    monkeypatch.setenv("DEMO_FOLDER", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(warm.path))
    assert demo.main() == 0
    assert_told(tmp_path, capfd.readouterr().out)
    commands = [call[0] for call in warm.calls]
    assert commands.count("compare") == 1 and commands.count("generate") == 2 and len(commands) == 8


@pytest.mark.slow
def test_end_to_end_and_again(tmp_path):
    """As from a shell."""
    first = start(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert_told(tmp_path, first.stdout)

    again = start(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("already done") >= 2


def test_a_folder_of_other_settings_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DEMO", "tiny")
    monkeypatch.setenv("DEMO_FOLDER", str(tmp_path))
    (tmp_path / "settings.txt").write_text("others")
    with pytest.raises(SystemExit, match="was made with other settings"):
        demo.main()


def test_unknown_mode_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("DEMO", "fast")
    assert demo.main() == 2
    assert "DEMO=fast is not known" in capsys.readouterr().out


def test_plan_pairs_variants_and_seeds():
    settings = demo.choose("full")
    runs = demo.plan(settings, "full")
    assert len(runs) == 4 * len(settings.seeds)
    assert runs[0].phd_flags == ""
    doubled = [run.iterations for run in runs if "2x" in run.name]
    assert doubled == [2 * settings.iterations] * len(settings.seeds)

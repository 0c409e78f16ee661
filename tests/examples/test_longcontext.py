"""make longcontext: its trainings and commands as planned, and its shortened form to the end."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from examples import steps
from examples.longcontext import run as longcontext
from phd.commands.cli import COMMANDS
from tests.examples.conftest import accepted
from tests.world import ROOT


def start(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LONGCONTEXT": "tiny", "LONGCONTEXT_FOLDER": str(folder)}
    command = [sys.executable, "-m", "examples.longcontext.run"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)


def test_the_full_story_as_planned(world, tmp_path, monkeypatch):
    """Every training starts from the model that it should, with flags that a start accepts; every command
    parses. None of them runs, and the evaluations find every needle.
    """
    trainings: dict[str, list[str]] = {}
    commands: list[list[str]] = []

    def train(run: Path, iterations: int, flags: list[str]) -> None:
        trainings[run.name] = [*steps.ARCHITECTURE.split(), *flags, "--train-iters", str(iterations)]

    def phd(*words: object) -> None:
        commands.append([*map(str, words)])
        answer: dict[str, list] = {}
        if "phd_needle" in words:
            lengths = [*map(int, commands[-1][commands[-1].index("--lengths") + 1].split(","))]
            answer["grids"] = [{"lengths": lengths, "accuracy": [[1.0] * len(lengths)] * 2}]
        elif "--loss-by-position" in words:
            answer["readings"] = [
                {"length": n, "loss": {"mean": 1 / n}} for n in longcontext.Settings.lengths
            ]
        if answer:
            Path(commands[-1][-1]).write_text(json.dumps(answer))

    monkeypatch.setenv("LONGCONTEXT", "")
    monkeypatch.setenv("LONGCONTEXT_FOLDER", str(tmp_path))
    for name in ("prepare_text", "prepare_documents"):
        monkeypatch.setattr(longcontext, name, lambda *arguments, **flags: None)
    monkeypatch.setattr(longcontext, "train", train)
    monkeypatch.setattr(longcontext, "phd", phd)
    assert longcontext.main() == 0

    starts = dict.fromkeys(("trained-on", "e2-llm", "longrecipe-gaps", "prolong-first"), "start")
    starts |= {"longrecipe-replay": "longrecipe-gaps-seed{}", "prolong": "prolong-first-seed{}"}
    assert trainings.keys() == {f"{name}-seed{seed}" for name in starts for seed in (1, 2, 3)}
    tokens: dict[str, int] = {}
    for run, flags in trainings.items():
        name, _, seed = run.rpartition("-seed")
        told = dict(zip(flags, flags[1:], strict=False))  # what stands last counts
        assert told["--pretrained-checkpoint"] == str(tmp_path / starts[name].format(seed) / "checkpoints")
        assert told["--seed"] == seed
        size = [int(told[flag]) for flag in ("--train-iters", "--global-batch-size", "--seq-length")]
        system = f"{name.partition('-')[0]}-{seed}"
        tokens[system] = tokens.get(system, 0) + size[0] * size[1] * size[2]
    assert max(tokens.values()) < 1.02 * min(tokens.values()), tokens
    for run in [run for run in trainings if run.startswith("longrecipe-gaps")]:  # no data set lies here
        trainings[run] += ["--position-sentence-ends", "7"]
    shapes = world.run(accepted, [*trainings.values()])[0]
    assert {length for _, _, length in shapes} == {256, 1024, 4096}

    for command, *words in commands:
        parser = ArgumentParser()
        COMMANDS[command][1](parser)
        parser.parse_args(words)
    evaluated = [words[1] for words in commands if "--loss-by-position" in words]
    assert len({*evaluated}) == len(evaluated) == 4 + 4 * 3  # each model once
    results = json.loads((tmp_path / "longcontext.json").read_text())["systems"]
    assert [*results] == [system.name for system in longcontext.SYSTEMS]
    for system in longcontext.SYSTEMS:
        assert [each["seed"] for each in results[system.name]] == [1, 2, 3][: 3 if system.trained else 1]
        assert all(each["needles"] == [1.0] * 5 for each in results[system.name])
    assert (tmp_path / "longcontext.png").stat().st_size > 10_000


@pytest.mark.slow
def test_end_to_end_and_again(tmp_path):
    """As from a shell."""
    first = start(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    results = json.loads((tmp_path / "longcontext.json").read_text())["systems"]
    assert [*results] == [system.name for system in longcontext.SYSTEMS]
    again = start(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("\nalready done\n") == 6


def test_unknown_mode_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("LONGCONTEXT", "fast")
    assert longcontext.main() == 2
    assert "LONGCONTEXT=fast is not known" in capsys.readouterr().out

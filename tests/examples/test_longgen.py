"""make longgen in its shortened form, end to end; and the documents that it trains on."""

import json
import os
import random
import re
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pytest

from examples import steps
from examples.longgen import run as longgen
from examples.longgen.needles import asked_needles, drill_document, needle_document
from phd.commands.cli import COMMANDS
from phd.evaluation.haystack import Haystack
from phd.evaluation.long_context import KEYS
from phd.run.status import newest_checkpoint
from tests.examples.conftest import accepted
from tests.world import ROOT


def start(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LONGGEN": "tiny", "LONGGEN_FOLDER": str(folder)}
    command = [sys.executable, "-m", "examples.longgen.run"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture
def haystack(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    words = (f"word{number % 97}" for number in range(5000))
    corpus.write_text(json.dumps({"text": " ".join(words)}) + "\n")
    return Haystack(corpus, lambda text: [*map(ord, text)], None, 4096)


def assert_told(folder: Path) -> None:
    results = json.loads((folder / "needle.json").read_text())
    assert [*results["means"]] == ["full attention, before the extension", "longgen-sink"]
    assert all(0 <= mean <= 1 for means in results["means"].values() for mean in means)
    assert (folder / "needle.png").stat().st_size > 10_000
    # with the sink's one: 3 blocks of 16 at 256 tokens, 9 at the longest
    for stage, length, local in ((3, 256, 2), (4, 512, 8)):
        run = folder / f"{stage}-longgen-sink" / "phd_run.json"
        arguments = json.loads(run.read_text())["arguments"]
        assert arguments["attention_pattern"] == f"longgen-sink.16.1.{local}"
        assert arguments["seq_length"] == length


def test_the_full_story_as_planned(world, tmp_path, monkeypatch):
    """Every training starts from the one before, with flags that a start accepts; every command parses. None
    of them runs, and the evaluations find every needle.
    """
    trainings: dict[str, list[str]] = {}
    commands: list[list[str]] = []

    def train(run: Path, iterations: int, flags: list[str]) -> None:
        run.mkdir()
        trainings[run.name] = [*steps.ARCHITECTURE.split(), *flags, "--train-iters", str(iterations)]

    def phd(*words: object) -> None:
        commands.append([*map(str, words)])
        if words[0] == "eval":
            grid = {"lengths": [256, 1024, 4096], "depths": [0, 100], "accuracy": [[1.0] * 3] * 2}
            Path(commands[-1][-1]).write_text(json.dumps({"grids": [grid]}))

    monkeypatch.setenv("LONGGEN", "")
    monkeypatch.setenv("LONGGEN_FOLDER", str(tmp_path))
    monkeypatch.setattr(longgen, "prepare_text", lambda *arguments, **flags: None)
    monkeypatch.setattr(longgen, "train", train)
    monkeypatch.setattr(longgen, "phd", phd)
    for name in ("64", "256", "256-again", "4096"):
        (tmp_path / f"documents-{name}.jsonl").touch()
    assert longgen.main() == 0

    starts = {"1-drill": "", "2-pretrain": "1-drill"}
    starts |= {f"3-{pattern}": "2-pretrain" for pattern in ("full", "longgen-sink", "longgen-block")}
    starts |= {f"4-{pattern}": f"3-{pattern}" for pattern in ("full", "longgen-sink", "longgen-block")}
    for run, flags in trainings.items():
        where = dict(zip(flags, flags[1:], strict=False)).get("--pretrained-checkpoint", "")
        assert where == (starts[run] and str(tmp_path / starts[run] / "checkpoints"))
    assert trainings.keys() == starts.keys()
    shapes = world.run(accepted, [*trainings.values()])[0]
    lengths = {"1": 64, "2": 256, "3": 256, "4": 4096}
    assert [length for _, _, length in shapes] == [lengths[run[0]] for run in trainings]

    assert [command for command, *_ in commands] == ["data"] * 4 + ["eval"] * 6
    for command, *words in commands:
        parser = ArgumentParser()
        COMMANDS[command][1](parser)
        parser.parse_args(words)
    results = json.loads((tmp_path / "needle.json").read_text())
    assert results["means"] == {evaluated.name: [1.0] * 3 for evaluated in longgen.EVALUATED}
    assert (tmp_path / "needle.png").stat().st_size > 10_000


def test_tiny_documents_make_a_training(warm, tmp_path, monkeypatch):
    """The first of the walkthrough's trainings, from text to a checkpoint."""
    settings = longgen.choose("tiny")
    stage = replace(settings.drill, documents=60)
    monkeypatch.setattr(sys, "executable", str(warm.path))
    longgen.prepare_text(tmp_path, settings, tiny=True)
    longgen.prepare_documents(stage, tmp_path)
    run = tmp_path / "1-drill"
    steps.train(run, stage.iterations, longgen.flags_of(stage, settings, tmp_path))
    assert newest_checkpoint(run / "checkpoints") == stage.iterations
    card = json.loads((tmp_path / f"documents-{stage.name}.json").read_text())
    assert card["documents"] == 60 and card["tokens"] == 60 * stage.length
    steps.train(run, stage.iterations, [])  # done already
    assert len(warm.calls) == 3


@pytest.mark.slow
def test_end_to_end_and_again(tmp_path):
    """As from a shell."""
    first = start(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert_told(tmp_path)

    again = start(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("\nalready done\n") == 4


def test_unknown_mode_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("LONGGEN", "fast")
    assert longgen.main() == 2
    assert "LONGGEN=fast is not known" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(5))
def test_needle_documents_ask_for_what_they_hid(haystack, seed):
    text = needle_document(haystack, 1500, KEYS, 4, random.Random(seed))
    assert len(haystack.encode(text)) == 1500
    assert len(questions := re.findall(r"\?\nAnswer: The secret number of the (\w+) is (\d{5})\.", text)) == 4
    for key, code in questions:
        hidden = f"The secret number of the {key} is {code}."
        assert text.count(hidden) == 2
        assert text.index(hidden) < text.index(f"Question: What is the secret number of the {key}?")


def test_drills_repeat_each_key_with_its_code(haystack):
    text = drill_document(haystack, 1000, random.Random(0))
    assert len(haystack.encode(text)) == 1000
    pairs = re.findall(r"the (\w+) is (\d{5})\.", text)
    assert len(pairs) > 30
    assert len({*pairs}) == len({key for key, _ in pairs}) < len(pairs)


def test_documents_that_do_not_fit_are_refused(haystack):
    with pytest.raises(ValueError, match="too short"):
        needle_document(haystack, 100, KEYS, 4, random.Random(0))


def test_asked_needles_are_answered():
    for text in asked_needles(random.Random(0), 20):
        assert len({*re.findall(r"\d{5}", text)}) == 1

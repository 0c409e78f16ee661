"""make longgen in its shortened form, end to end; and the documents that it trains on."""

import json
import os
import random
import re
import subprocess
import sys

import pytest

from examples.longgen.needles import asked_needles, drill_document, needle_document
from phd.evaluation.haystack import Haystack
from phd.evaluation.long_context import KEYS
from tests.world import ROOT


def start(folder, mode="tiny") -> subprocess.CompletedProcess:
    environment = os.environ | {"LONGGEN": mode, "LONGGEN_FOLDER": str(folder)}
    command = [sys.executable, "-m", "examples.longgen.run"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture
def haystack(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    words = (f"word{number % 97}" for number in range(5000))
    corpus.write_text(json.dumps({"text": " ".join(words)}) + "\n")
    return Haystack(corpus, lambda text: [*map(ord, text)], None, 4096)


@pytest.mark.slow
def test_end_to_end_and_again(tmp_path):
    first = start(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    results = json.loads((tmp_path / "needle.json").read_text())
    assert [*results["means"]] == ["full attention, before the extension", "longgen-sink"]
    assert all(0 <= mean <= 1 for means in results["means"].values() for mean in means)
    assert (tmp_path / "needle.png").stat().st_size > 10_000
    # with the sink's one: 3 blocks of 16 at 256 tokens, 9 at the longest
    for stage, length, local in ((3, 256, 2), (4, 512, 8)):
        run = tmp_path / f"{stage}-longgen-sink" / "phd_run.json"
        arguments = json.loads(run.read_text())["arguments"]
        assert arguments["attention_pattern"] == "longgen-sink"
        assert arguments["seq_length"] == length
        assert arguments["attention_pattern_block"] == 16
        assert arguments["attention_pattern_local_blocks"] == local

    again = start(tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("\nalready done\n") == 4


def test_unknown_mode_is_refused(tmp_path):
    answer = start(tmp_path, mode="fast")
    assert answer.returncode == 2
    assert "LONGGEN=fast is not known" in answer.stdout


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

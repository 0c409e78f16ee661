"""Weights that add up, epochs that are kept to, and a file that Megatron reads."""

import json

import numpy as np
import pytest

from data_tools.blend import blend
from data_tools.indexed import write_index


@pytest.fixture
def sets(tmp_path):
    """Of 100, 400 and 1600 tokens, in documents of 10."""
    for name, tokens in (("a", 100), ("b", 400), ("c", 1600)):
        np.zeros(tokens, np.uint16).tofile(tmp_path / f"{name}.bin")
        write_index(tmp_path / f"{name}.idx", np.dtype(np.uint16), [np.full(tokens // 10, 10, np.int32)])
    return [str(tmp_path / name) for name in "abc"]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(None, [100, 400, 1600]), (1.0, [100, 400, 1600]), (2.0, [10, 20, 40]), (1e9, [1, 1, 1])],
)
def test_by_tokens_and_temperature(temperature, expected, sets, tmp_path):
    shares = blend(sets, tmp_path / "blend.txt", temperature=temperature)
    assert shares == pytest.approx(np.array(expected) / sum(expected))


def test_by_epochs(sets, tmp_path, capsys):
    shares = blend([f"{sets[0]}=3", f"{sets[2]}=0.5"], tmp_path / "blend.txt", epochs=True)
    assert shares == pytest.approx([300 / 1100, 800 / 1100])
    assert "3.00" in capsys.readouterr().out


def test_file_is_what_megatron_takes(sets, tmp_path):
    from megatron.core.datasets.utils import get_blend_from_list

    shares = blend(sets, tmp_path / "blend.txt", temperature=3)
    prefixes, weights = get_blend_from_list((tmp_path / "blend.txt").read_text().split())
    assert prefixes == sets
    assert weights == pytest.approx(shares)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"temperature": 1.0, "train_tokens": 10_000},
            "would go through it 4.76 times, more than --max-epochs 4",
        ),
        ({"temperature": 9.0, "train_tokens": 2_100}, r"a: 2,100 tokens .* 5.95 times"),
        ({"temperature": 1.0, "train_tokens": 5_000, "train_share": 0.5}, r"4\.76 times"),
        ({"temperature": 0.0}, "--temperature must be a number above 0"),
        ({"epochs": True}, "need PREFIX=NUMBER"),
    ],
    ids=["all", "one", "split", "temperature", "numbers"],
)
def test_refused(changes, message, sets, tmp_path):
    with pytest.raises(ValueError, match=message):
        blend(sets, tmp_path / "blend.txt", **changes)
    assert not (tmp_path / "blend.txt").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["A=x"], "'x' is not a number"),
        (["A=0"], "must be above 0"),
        (["A=5"], "A.* times, more than --max-epochs"),
        (["A=1", "A=2"], "named twice"),
        (["with space=1"], "with a space in it"),
    ],
)
def test_bad_numbers(entries, message, sets, tmp_path):
    entries = [entry.replace("A", sets[0]) for entry in entries]
    with pytest.raises(ValueError, match=message.replace("A.*", "a: .*")):
        blend(entries, tmp_path / "blend.txt", epochs=True)


def test_other_tokenizers_are_refused(sets, tmp_path):
    """By their cards, as merge does; a data set without a card goes with any."""
    for prefix, sha256 in ((sets[0], "12"), (sets[2], "34")):
        card = {
            "documents": 1,
            "tokens": 9,
            "file_bytes": {".bin": 1},
            "made_from": {"tokenizer_sha256": sha256},
        }
        (tmp_path / f"{prefix}.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"a and .*c were made with different tokenizers \(.* 12 and 34\)"):
        blend(sets, tmp_path / "blend.txt")
    assert not (tmp_path / "blend.txt").exists()
    blend(sets[:2], tmp_path / "blend.txt")


def test_paths_and_the_share_trained_on_are_printed(sets, tmp_path, monkeypatch, capsys):
    """Paths whole, however narrow the terminal; --split as the project's scripts have it."""
    from data_tools.__main__ import main

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.argv", ["phd data", "blend", *sets, "--output", str(tmp_path / "blend.txt")])
    assert main() == 0
    output = capsys.readouterr().out
    assert all(prefix in output for prefix in sets)
    assert "1,520" in output and "the first 95.0% of the documents that --split leaves" in output

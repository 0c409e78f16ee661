"""Weights that add up, epochs that are kept to, and a file that Megatron reads."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_tools.blend import blend, tokens_read
from data_tools.indexed import open_indexed, write_index
from data_tools.numbers import train_share

ROOT = Path(__file__).parents[2]


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


def write(prefix, lengths):
    np.zeros(sum(lengths), np.uint16).tofile(f"{prefix}.bin")
    write_index(prefix.with_name(f"{prefix.name}.idx"), np.dtype(np.uint16), [np.array(lengths, np.int32)])
    return str(prefix)


UNEVEN = {
    "long-last": [3] * 95 + [4000] * 5,
    "long-first": [4000] * 5 + [3] * 95,
    "few": [7, 100, 2],
    "with-empty": [0, 50, 0, 9, 0, 0, 1],
}


@pytest.mark.parametrize("split", ["95,5,0", "969,30,1", "50,40,10", "1"])
@pytest.mark.parametrize("lengths", UNEVEN.values(), ids=UNEVEN)
def test_tokens_are_those_that_megatron_reads(lengths, split, tmp_path):
    """A split is of documents, not of tokens: an epoch's tokens as Megatron's own data set counts them."""
    from megatron.core.datasets.blended_megatron_dataset_config import (
        convert_split_vector_to_split_matrix,
        parse_and_normalize_split,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    write(tmp_path / "a", lengths)
    data = IndexedDataset(str(tmp_path / "a"))
    beginning, end = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))[0]
    documents = GPTDataset.numel_low_level_dataset(data)
    indices = np.arange(int(round(beginning * float(documents))), int(round(end * float(documents))))
    reader = SimpleNamespace(dataset=data, indices=indices)
    expected = GPTDataset._get_num_tokens_per_epoch(reader)
    assert tokens_read(open_indexed(tmp_path / "a"), train_share(split)) == expected


def test_an_overrun_is_seen_where_documents_are_uneven(tmp_path):
    """The first 95 documents of 100 hold 285 tokens: 77,000 go through them 270 times."""
    prefix = write(tmp_path / "a", UNEVEN["long-last"])
    with pytest.raises(ValueError, match=r"would go through it 270\.18 times, .* reads 285 tokens of it"):
        blend([prefix], tmp_path / "blend.txt", train_tokens=77_000, train_share=0.95)
    # Each remedy: fewer tokens, more epochs, less weight.
    blend([prefix], tmp_path / "blend.txt", train_tokens=1140, train_share=0.95)
    blend([prefix], tmp_path / "blend.txt", train_tokens=77_000, train_share=0.95, max_epochs=271)
    other = write(tmp_path / "b", [10] * 10_000)
    sets = [f"{prefix}=1", f"{other}=99"]
    blend(sets, tmp_path / "blend.txt", weights=True, train_tokens=77_000, train_share=0.95)
    long_first = write(tmp_path / "c", UNEVEN["long-first"])
    blend([long_first], tmp_path / "c.txt", train_tokens=77_000, train_share=0.95)


def test_what_training_reads_nothing_of(tmp_path):
    prefix = write(tmp_path / "a", [0] * 95 + [10] * 5)
    with pytest.raises(ValueError, match=r"holds no tokens in the first 95\.0% of .* leave it out"):
        blend([prefix], tmp_path / "blend.txt", train_share=0.95)


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 1e300])
def test_extreme_temperatures(temperature, tmp_path):
    even = [write(tmp_path / name, [100]) for name in "ab"]
    assert blend(even, tmp_path / "blend.txt", temperature=temperature) == [0.5, 0.5]
    uneven = [even[0], write(tmp_path / "c", [1000])]
    if temperature > 1:
        assert blend(uneven, tmp_path / "blend.txt", temperature=temperature) == pytest.approx([0.5, 0.5])
        return
    with pytest.raises(ValueError, match=r"a: its weight is 0 .*leave it out, or .* higher --temperature"):
        blend(uneven, tmp_path / "blend.txt", temperature=temperature)
    blend(uneven, tmp_path / "blend.txt", temperature=1.0)
    blend(uneven[1:], tmp_path / "blend.txt", temperature=temperature)


@pytest.mark.parametrize("numbers", [(1e-11, 1), (1e-200, 3e99), (0.1, 0.2)])
def test_weights_are_written_in_all_their_digits(numbers, sets, tmp_path):
    entries = [f"{prefix}={number}" for prefix, number in zip(sets, numbers, strict=False)]
    shares = blend(entries, tmp_path / "blend.txt", weights=True)
    words = (tmp_path / "blend.txt").read_text().split()
    assert [float(word) for word in words[::2]] == shares
    assert min(shares) > 0 and shares[0] == pytest.approx(numbers[0] / sum(numbers))


@pytest.mark.parametrize("how", ["weights", "epochs"])
@pytest.mark.parametrize("number", ["nan", "inf", "-1", "1e101", "0"])
def test_numbers_that_are_none(how, number, sets, tmp_path):
    with pytest.raises(ValueError, match="the number must be above 0 and below"):
        blend([f"{sets[0]}={number}"], tmp_path / "blend.txt", **{how: True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": float("nan")}, "--temperature must be a number above 0, got nan"),
        ({"temperature": float("inf")}, "--temperature must be a number above 0, got inf"),
        ({"max_epochs": float("nan")}, "--max-epochs must be a number above 0, got nan"),
        ({"max_epochs": 0.0}, "--max-epochs must be a number above 0, got 0"),
        ({"train_tokens": 0}, "--train-tokens must be at least 1, got 0"),
        ({"train_tokens": -5}, "--train-tokens must be at least 1, got -5"),
        ({"train_tokens": 10**400}, "--train-tokens must be at most"),
    ],
)
def test_flags_that_are_no_numbers(changes, message, sets, tmp_path):
    with pytest.raises(ValueError, match=message):
        blend(sets, tmp_path / "blend.txt", **changes)
    assert not (tmp_path / "blend.txt").exists()


def test_a_path_that_is_not_utf8(tmp_path):
    prefix = write(tmp_path / "a\udcff", [10])
    with pytest.raises(ValueError, match="cannot hold a path that is not UTF-8"):
        blend([prefix], tmp_path / "blend.txt")


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


@pytest.mark.parametrize("stage", ["64k", "512k"])
def test_shares_of_prolong_are_realised(stage, tmp_path):
    """Through Megatron's own draw: every domain within 0.5% of its share, in the samples of a whole stage."""
    from megatron.core.datasets import helpers

    file = ROOT / "examples" / "prolong" / f"{stage}.txt"
    lines = [line.split() for line in file.read_text().splitlines() if line[:1] != "#"]
    recipe = {name: float(share) for share, name in lines}
    prefixes = [write(tmp_path / name, [10]) for name in reversed(recipe)]  # not in the file's order
    blend(prefixes, tmp_path / "blend.txt", weights_file=file)
    words = (tmp_path / "blend.txt").read_text().split()
    weights, names = [float(word) for word in words[::2]], [word.rpartition("/")[2] for word in words[1::2]]
    samples = {"64k": 5000 * 64, "512k": 2500 * 16}[stage]
    sets, numbers = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    helpers.build_blending_indices(sets, numbers, weights, len(weights), samples, False)
    realised = np.bincount(sets, minlength=len(names)) / samples
    assert dict(zip(names, realised, strict=True)) == pytest.approx(recipe, abs=0.005)
    long_sets = [name for name in recipe if name.endswith("k") or name == "textbooks"]
    assert sum(recipe[name] for name in long_sets) == pytest.approx(0.63)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0.5 a\n0.25 b\n0.25 d\n", "weights.txt: no PREFIX is called d: name those too"),
        ("0.5 a\n0.5 b\n", "weights.txt has no share for c: leave it out, or add a line"),
        ("0.5 a\n0.3 b # web\n0.1 c\n", "the shares add up to 0.9, not to 1"),
        ("0.5 a\n0.3 b\n0.2 a\n", "line 3: a has a share already"),
        ("# shares\n50% a\n", "line 2: expected a share and the name of a data set"),
        ("1.5 a\n", "line 1: expected a share above 0 and up to 1"),
    ],
)
def test_bad_weights_files(lines, message, sets, tmp_path):
    (tmp_path / "weights.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        blend(sets, tmp_path / "blend.txt", weights_file=tmp_path / "weights.txt")
    with pytest.raises(FileNotFoundError, match=r"--weights-file .*none\.txt: there is no such file"):
        blend(sets, tmp_path / "blend.txt", weights_file=tmp_path / "none.txt")
    assert not (tmp_path / "blend.txt").exists()

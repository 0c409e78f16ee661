"""Gaps between the sentences of the very text, against LongRecipe's draw written slot by slot."""

import json

import numpy as np
import pytest

from phd.training.position_gaps import gap_positions, segment_starts, sentence_end_ids
from tests.training.test_arguments import FLAGS, refused_at_start
from tests.training.test_e2_llm import numbers, train
from tests.trainings import PATTERN, VARIANTS

ENDS = {7, 9}


def sample(seed, length=60, documents=True):
    """Tokens, and where each one's document starts."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 12, length)
    starts = np.zeros(length, np.int64)
    for border in np.sort(draw.choice(np.arange(1, length), 3, replace=False)) if documents else ():
        starts[border:] = border
    return tokens, starts


def segments_of(tokens, document_starts):
    """Lists of places, one token after the other."""
    segments = [[0]]
    for place in range(1, len(tokens)):
        before, token = tokens[place - 1], tokens[place]
        if document_starts[place] == place or (before in ENDS and token not in ENDS):
            segments.append([])
        segments[-1].append(place)
    return segments


def slow_positions(tokens, document_starts, room, draw):
    """A segment lies behind as many free slots as there are before its own; the first behind none."""
    positions = []
    segments = segments_of(tokens, document_starts)
    for start in sorted(set(document_starts.tolist())):
        own = [segment for segment in segments if document_starts[segment[0]] == start]
        drawn = set(draw.choice(room + len(own), len(own), replace=False, shuffle=False).tolist())
        free, waiting = 0, iter(own)
        for slot in range(room + len(own)):
            if slot not in drawn:
                free += 1
                continue
            segment = next(waiting)
            positions += [place + (0 if segment is own[0] else free) for place in segment]
    return positions


@pytest.mark.parametrize("room", [0, 1, 40])
@pytest.mark.parametrize("seed", range(6))
def test_against_slots(seed, room):
    tokens, documents = sample(seed, documents=seed % 2 == 0)
    starts = segment_starts(np.isin(tokens, list(ENDS)), documents)
    assert starts.tolist() == [segment[0] for segment in segments_of(tokens, documents)]
    found = gap_positions(starts, documents, room, np.random.default_rng([seed, room]))
    assert found.tolist() == slow_positions(tokens, documents, room, np.random.default_rng([seed, room]))
    # What any draw has: from 0 on, below the target, rising within a document, jumps between sentences alone.
    assert found[0] == 0 and found.max() < len(tokens) + room
    steps = np.diff(found)
    inside = np.setdiff1d(np.arange(1, len(tokens)), starts) - 1
    assert (steps[inside] == 1).all()
    assert (steps[documents[1:] == documents[:-1]] >= 1).all()
    assert (found >= np.arange(len(tokens))).all()
    if room == 0:
        assert found.tolist() == list(range(len(tokens)))


def test_mean_gaps():
    """Of 5 segments and a room of 60: 20 before the second, 10 before each later one, 10 left behind."""
    starts, documents, room, count = np.array([0, 2, 3, 7, 9]), np.zeros(10, np.int64), 60, 4000
    draws = [gap_positions(starts, documents, room, np.random.default_rng([1, n])) for n in range(count)]
    gaps = np.array([np.diff(positions)[starts[1:] - 1] - 1 for positions in draws])
    left = np.array([10 + room - 1 - positions[-1] for positions in draws])
    means = [*gaps.mean(0), left.mean()]
    errors = np.array([*gaps.std(0), left.std()]) / count**0.5
    assert np.abs((means - np.array([20, 10, 10, 10, 10])) / errors).max() < 4


def test_sentence_ends_of_cards(tmp_path):
    for name, ends in (("a", [3, 9]), ("b", [3, 9]), ("c", [4]), ("d", None)):
        card = {"documents": 1} | ({"sentence_ends": ends} if ends else {})
        (tmp_path / f"{name}.json").write_text(json.dumps(card))
    a, b, c, d = (str(tmp_path / name) for name in "abcd")
    assert sentence_end_ids(None, [a, b]) == [3, 9]
    assert sentence_end_ids("9,3,3", [d]) == [3, 9]
    for given, prefixes, message in (
        (None, [a, c], r"a\.json and .*c\.json have other tokens that end a sentence"),
        (None, [a, d], r"d\.json does not say which tokens end a sentence: pass --position-sentence-ends"),
        (None, [], "--position-gaps-to needs --position-sentence-ends"),
        ("newline", [a], "--position-sentence-ends newline: expected ids"),
        ("-1", [a], "an id is at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            sentence_end_ids(given, prefixes)


def test_trainings(world, base_flags, packed_data, tmp_path):
    """Copies, sparse layers and packed documents, at a learning rate of 0: without room for gaps the plain
    run bit for bit; with room another loss, the same in every layout and after a resume; and the same
    validation.
    """
    flags = [*base_flags, *packed_data, "--global-batch-size", "4", "--lr", "0"]
    flags += [*VARIANTS["PHD-CSWA-3-5-12"], *PATTERN.split(), "--dataloader-inter-document-masking"]
    flags += ["--max-position-embeddings", "400", "--eval-interval", "4"]
    # weights large enough that a position shows, and common to all layouts
    start = str(tmp_path / "start")
    once = ["--init-method-std", "0.1", "--train-iters", "1", "--save", start, "--save-interval", "1"]
    world.pretrain([*flags, *once])
    flags += ["--pretrained-checkpoint", start]
    gaps = "--position-sentence-ends 32,46 --position-gaps-to"
    plain, none, one = (
        train(world, flags, tmp_path / name, more)
        for name, more in (("plain", ""), ("none", f"{gaps} 40"), ("one", f"{gaps} 400"))
    )
    for half in (
        "--context-parallel-size 2 --pipeline-model-parallel-size 2 --exit-interval 2",
        "--context-parallel-size 2 --tensor-model-parallel-size 2",
    ):
        two = train(world, flags, tmp_path / "two", f"{gaps} 400 --save-interval 2 {half}", ranks=4)
    losses = [numbers(lines, "lm loss", "grad-norm") for lines in (plain, none, one, two)]
    assert losses[0] == losses[1]
    for found, expected in zip(losses[3], losses[2], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert max(abs(a[0] - b[0]) for a, b in zip(losses[0], losses[2], strict=True)) > 1e-3
    reaches = [
        [line.get("position reach") for line in lines if line["kind"] == "train"]
        for lines in (none, one, two)
    ]
    assert {*reaches[0]} == {40} and reaches[1] == reaches[2] and len({*reaches[1]}) > 1
    assert all(40 < reach <= 400 for reach in reaches[1])
    validations = [
        [line["lm loss validation"] for line in lines if line["kind"] == "validation"]
        for lines in (plain, none, one)
    ]
    assert len(validations[0]) == 1 and validations[0] == validations[1] == validations[2]


REFUSED = {
    "--position-gaps-to 39 --position-sentence-ends 3": "--position-gaps-to 39 is less than --seq-length 40",
    "--position-gaps-to 80": "--position-gaps-to 80 is more than --max-position-embeddings 40: raise that",
    "--position-sentence-ends 3": "--position-sentence-ends is of --position-gaps-to: pass it too",
}


def refusals() -> list[str]:
    return [refused_at_start([*FLAGS, *more.split()]) for more in REFUSED]


def test_flags_that_do_not_fit(world):
    (answers,) = world.run(refusals)
    for answer, expected in zip(answers, REFUSED.values(), strict=True):
        assert answer.startswith(expected), answer

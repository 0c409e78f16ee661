"""E2-LLM: its draws and positions against the page's formulas, and trainings with them in every layout."""

import json
import shlex
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest

from phd.run.record import METRICS_FILE
from tests.training.test_arguments import FLAGS, refused_at_start
from tests.trainings import MIXTURE_OF_EXPERTS, PATTERN
from tests.trainings import VARIANTS as COPIES

MAX_SCALE, CONTEXT = 5, 96


def arguments(**changes: int) -> Namespace:
    given = {"rope_max_scale": 20, "rope_context": 64, "rope_still_tokens": 4, "seq_length": 64, "seed": 7}
    return Namespace(**{**given, **changes})


def drawn(args: Namespace, iterations: int) -> list[tuple[int, int]]:
    from phd.training.e2_llm import draw

    return [draw(args, iteration) for iteration in range(1, iterations + 1)]


def check_draws() -> None:
    args = arguments()
    draws = drawn(args, 20000)
    counts = Counter(scale for scale, _ in draws)
    assert sorted(counts) == list(range(1, 21))
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())  # of a Poisson's deviations
    for scale in range(1, 21):
        largest = scale * 64 - 64
        shifts = [shift for its, shift in draws if its == scale]
        assert min(shifts) >= 0 and max(shifts) <= largest
        assert all((64 - 1 + shift) / scale < 64 for shift in shifts)
        deviation = largest / 12**0.5 / len(shifts) ** 0.5  # of the mean of a uniform draw
        assert abs(sum(shifts) / len(shifts) - largest / 2) <= 5 * deviation
        assert scale == 1 or (min(shifts) < 0.02 * largest and max(shifts) > 0.98 * largest)
    assert drawn(args, 50) == draws[:50]
    assert drawn(arguments(seed=8), 50) != draws[:50]
    # samples longer than a scale's context stay where they are; shorter ones move at scale 1 too
    longer = drawn(arguments(seq_length=256), 2000)
    assert all(shift == 0 for scale, shift in longer if scale <= 4)
    assert any(shift > 0 for scale, shift in longer if scale == 5)
    assert all(0 <= shift <= 24 for scale, shift in drawn(arguments(rope_max_scale=1, seq_length=40), 100))


def test_draws(world):
    """g is uniform over 1 .. G, t over 0 .. g * L - R, and no position reaches L."""
    world.run(check_draws)


def check_positions() -> None:
    from unittest.mock import patch

    import torch

    import pretrain_phd
    from phd.training.e2_llm import Draw, draw, drawn_positions

    args = arguments(seq_length=12)
    starts = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 3, 3, 9, 9, 9], [0] * 12])
    for scale, shift in ((1, 7), (3, 0), (3, 14), (20, 1268)):
        for documents in (None, starts):
            positions = drawn_positions(args, Draw(scale, shift), documents)
            assert positions is not None
            for row, begins in enumerate([[0] * 12] if documents is None else starts.tolist()):
                expected = [(m + (shift if m - begin >= 4 else 0)) / scale for m, begin in enumerate(begins)]
                assert positions[row].tolist() == expected
            assert len(positions) == (1 if documents is None else 2)
            assert positions.dtype == (torch.int64 if scale == 1 else torch.float64)
    assert drawn_positions(args, Draw(1, 0), starts) is None
    args.curr_iteration = 6  # Megatron counts from 0, the record from 1
    with patch.object(pretrain_phd, "get_args", lambda: args):
        trained = pretrain_phd.rotary_positions(starts)
    seventh = drawn_positions(args, draw(args, 7), starts)
    assert trained is not None and seventh is not None
    assert torch.equal(trained, seventh)


def test_positions(world):
    """(m + t) / g, and t is 0 for the first four of every document."""
    world.run(check_positions)


E2 = f"--rope-max-scale {MAX_SCALE} --rope-context {CONTEXT}"
EVERYTHING = " ".join([*COPIES["PHD-CSWA-3-5-12"], PATTERN, "--dataloader-inter-document-masking", E2])


@pytest.fixture(scope="module")
def flags(world, base_flags, packed_data, tmp_path_factory) -> list[str]:
    """From weights large enough that a position shows."""
    flags = [*base_flags, *packed_data, "--global-batch-size", "4"]  # the last data path counts
    start = str(tmp_path_factory.mktemp("start"))
    once = ["--init-method-std", "0.1", "--train-iters", "1", "--save", start, "--save-interval", "1"]
    world.pretrain([*flags, *once])
    return [*flags, "--pretrained-checkpoint", start, "--override-phd-variant"]


def train(world, flags: list[str], folder: Path, more: str, ranks: int = 1) -> list[dict]:
    """The lines of the record."""
    world.pretrain([*flags, "--run-dir", str(folder), *shlex.split(more)], ranks)
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def numbers(lines: list[dict], *names: str) -> list[list[float]]:
    return [[line[name] for name in names] for line in lines if line["kind"] == "train"]


def test_layouts_and_resume(world, flags, tmp_path):
    """Copies, sparse layers, packed documents: one process, and the same broken off in one layout and gone on
    with in another.
    """
    one = train(world, flags, tmp_path / "one", EVERYTHING)
    halves = (
        "--context-parallel-size 2 --cp-comm-type a2a --pipeline-model-parallel-size 2 --exit-interval 2 "
        "--num-layers-per-virtual-pipeline-stage 1",
        "--context-parallel-size 2 --cp-comm-type all_gather --tensor-model-parallel-size 2 "
        "--sequence-parallel "
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    )
    for half in halves:
        two = train(world, flags, tmp_path / "two", f"{EVERYTHING} --save-interval 2 {half}", ranks=4)
    assert len(numbers(two, "lm loss")) == 4
    for found, expected in zip(
        *(numbers(lines, "lm loss", "grad-norm") for lines in (two, one)), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-5)
    draws = numbers(two, "phd/rope-scale", "phd/rope-shift")
    args = arguments(rope_max_scale=MAX_SCALE, rope_context=CONTEXT, seq_length=40)
    assert [tuple(each) for each in draws] == world.run(drawn, args, 4)[0]
    assert len({scale for scale, _ in draws}) > 1 and any(shift for _, shift in draws)


def test_at_scale_one_and_in_validation_it_is_the_plain_run(world, base_flags, packed_data, tmp_path):
    """Bit for bit, with experts. At a learning rate of 0, so that all runs validate the same weights."""
    flags = [
        *base_flags,
        *packed_data,
        *MIXTURE_OF_EXPERTS,
        "--global-batch-size",
        "4",
        "--init-method-std",
        "0.1",
    ]
    plain, one, drawn = (
        train(world, flags, tmp_path / f"{number}", f"--lr 0 --eval-interval 4 {more}")
        for number, more in enumerate(("", "--rope-max-scale 1 --rope-context 40", E2))
    )
    assert numbers(one, "lm loss", "grad-norm") == numbers(plain, "lm loss", "grad-norm")
    apart = [
        abs(found - expected) / expected
        for [found], [expected] in zip(numbers(drawn, "lm loss"), numbers(plain, "lm loss"), strict=True)
    ]
    assert max(apart) > 1e-3, apart  # a hundred times what layouts are held to
    validations = [[line for line in lines if line["kind"] == "validation"] for lines in (plain, one, drawn)]
    losses_ = [[line["lm loss validation"] for line in lines] for lines in validations]
    assert len(losses_[0]) == 1 and losses_[0] == losses_[1] == losses_[2]


REFUSED = {
    "--rope-context 64": "--rope-context is of --rope-max-scale: pass it too, or leave this out",
    "--rope-still-tokens 0": "--rope-still-tokens is of --rope-max-scale: pass it too, or leave this out",
    "--rope-max-scale 2 --rope-context 19": "--seq-length 40 is more than --rope-max-scale 2 times",
    "--rope-max-scale -1": "--rope-max-scale -1 must be at least 0",
    "--rope-max-scale 2 --rope-context 0": "--rope-context 0 must be at least 1",
    "--rope-max-scale 2 --rope-context 20": "",
    "--rope-max-scale 1": "",
}


def refusals() -> list[str]:
    return [refused_at_start([*FLAGS, *more.split()]) for more in REFUSED]


def test_flags_that_do_not_fit(world):
    (answers,) = world.run(refusals)
    for answer, expected in zip(answers, REFUSED.values(), strict=True):
        assert answer.startswith(expected) and bool(answer) == bool(expected)

import json
import math

import pytest

from phd.compare.groups import group_runs
from phd.compare.logs import find_runs
from phd.compare.summary import as_json, summarize
from tests.compare.conftest import PHD, write_metrics


def read(*folders):
    return group_runs([run for folder in folders for run in find_runs(folder)])


@pytest.fixture
def two_seeds(make_run):
    """PHD is better by 0.25 and by 0.5."""
    return read(
        make_run("v1", seed=1),
        make_run("v2", shift=1.0, seed=2),
        make_run("p1", shift=-0.25, seed=1, **PHD),
        make_run("p2", shift=0.5, seed=2, **PHD),
    )


def test_groups_are_summarized(two_seeds):
    vanilla, phd = summarize(two_seeds).summaries
    assert (vanilla.is_baseline, phd.is_baseline) == (True, False)
    assert vanilla.validation_loss is not None and phd.validation_loss is not None
    assert vanilla.validation_loss.mean == pytest.approx(3.75)
    # t(0.975, 1) = 12.7062, the standard deviation over the root of 2 is half the distance.
    assert vanilla.validation_loss.half_width == pytest.approx(12.7062 / 2, rel=1e-5)
    assert phd.train_loss is not None and phd.train_loss.mean == pytest.approx(3.05 + 0.125)
    assert vanilla.train_difference is vanilla.validation_difference is None
    for difference in (phd.train_difference, phd.validation_difference):
        assert difference is not None
        assert (difference.mean, difference.n) == (pytest.approx(-0.375), 2)
        assert difference.standard_deviation == pytest.approx(0.25 / math.sqrt(2))
        # t = 3 with one degree of freedom: p = 2 atan(1 / 3) / pi.
        assert difference.p == pytest.approx(2 * math.atan(1 / 3) / math.pi)
    assert (phd.tokens, phd.training_flops, phd.parameters) == (160, 160 * 12000.0, 1000)
    assert phd.tokens_per_second == pytest.approx(22.5)
    assert phd.progress == {}


def test_tokens_and_flops_to_the_baseline_s_loss(make_run):
    # 3.25, the baseline's last, lies half way between 3.5 at 120 tokens and 3.0 at 160.
    vanilla, phd = summarize(read(make_run("v"), make_run("p", shift=-0.25, **PHD))).summaries
    assert phd.reach is not None
    assert phd.reach.tokens == pytest.approx(140)
    assert phd.reach.flops == pytest.approx(140 * 12000)
    assert phd.reach.tokens_ratio == pytest.approx(140 / 160)
    assert phd.reach.flops_ratio == pytest.approx(2 * 140 / 160)
    assert vanilla.reach is not None and vanilla.reach.tokens_ratio == vanilla.reach.flops_ratio == 1


def test_loss_that_is_not_reached(make_run):
    _, phd = summarize(read(make_run("v"), make_run("p", shift=0.25, **PHD))).summaries
    assert phd.reach is None


def test_no_validation_yet(make_run):
    vanilla, phd = summarize(read(make_run("v"), make_run("p", iterations=3, **PHD))).summaries
    assert phd.validation_loss is phd.validation_difference is phd.train_difference is phd.reach is None
    assert phd.progress == {1234: pytest.approx(0.15)}
    first, _ = summarize(read(make_run("w", iterations=3), make_run("q", **PHD))).summaries
    assert first.reach is None


def test_json_has_all_numbers(two_seeds):
    content = as_json(summarize(two_seeds))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["baseline"] == "vanilla"
    vanilla, phd = content["groups"]
    assert vanilla["validation_difference"] is None
    assert phd["validation_difference"]["mean"] == pytest.approx(-0.375)
    assert set(phd["validation_difference"]) == {
        *("mean", "low", "high", "n", "p", "standard_deviation", "pairs_needed")
    }
    assert phd["worth"]["flops"] == 2 and vanilla["worth"] is None
    assert phd["paper"] == [{"size": "1.2B", "loss": 2.576, "difference": -0.025}]
    assert [(run["label"], run["seed"]) for run in content["runs"]] == [
        ("vanilla", 1),
        ("vanilla", 2),
        (PHD["name"], 1),
        (PHD["name"], 2),
    ]
    assert [run["difference"] for run in content["runs"]] == [None, None, *map(pytest.approx, (-0.25, -0.5))]
    assert content["runs"][2]["validation_curve"]["flops"][-1] == 160 * 12000.0


def test_diverged_run_is_null_in_json(make_run):
    folder = make_run("p", **PHD)
    write_metrics(folder, dict.fromkeys(range(1, 21), math.nan), {20: math.nan})
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace("NaN", "null"))
    groups = read(make_run("v"), folder)
    content = as_json(summarize(groups))
    json.dumps(content, allow_nan=False)
    assert content["runs"][1]["validation_loss"] is content["runs"][1]["train_loss"] is None
    assert content["groups"][1]["validation_loss"] is content["groups"][1]["validation_difference"] is None

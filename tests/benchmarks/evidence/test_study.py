"""The plan of docs/evidence.md as values, and its report on made-up records."""

import json
import math
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.evidence.report import main, read_rows, slope_over_sizes, table
from benchmarks.evidence.run import KEPT, more_orders, record_name, thin
from benchmarks.evidence.study import (
    AGAIN,
    CLAIM,
    LONG,
    LONGER,
    MOST_ORDERS,
    PLANNED,
    PRIMARY,
    SHORT,
    TRUNKS,
    VANILLA,
    orders_needed,
)
from phd.rules.variant import Variant

SMALL, LARGEST = TRUNKS[0], TRUNKS[-1]


def test_all_that_is_trained_has_a_name_and_a_length():
    for trunk in TRUNKS:
        seen = {(branches.arm, branches.share) for branches in trunk.branches}
        assert len(seen) == len(trunk.branches)
        for branches in trunk.branches:
            assert str(Variant.parse(branches.variant)) == branches.variant
            assert 0 < branches.iterations <= trunk.longest
        # as many FLOPs as PHD's, to an iteration
        (longer,) = [branches for branches in trunk.branches if branches.arm == LONGER]
        vanilla = trunk.vanilla(longer.share)
        assert longer.iterations == pytest.approx(
            trunk.flops_ratio("PHD-CSWA-2-16-32") * vanilla.iterations, abs=1
        )
    assert [trunk.branches[0].arm for trunk in TRUNKS] == [VANILLA] * len(TRUNKS)


def test_learning_rates_are_the_best_of_those_tried():
    losses = json.loads((KEPT / "rates.json").read_text())["validation_loss"]
    for trunk in TRUNKS:
        tried = losses[trunk.name.removesuffix("-second")]
        assert trunk.lr == float(min(tried, key=tried.get))


def test_orders_follow_from_the_spread_alone():
    differences = np.array([0.001, -0.0004, 0.0002])
    assert orders_needed(differences) == orders_needed(differences + 1.0)
    assert orders_needed([0.0, 0.0, 0.0]) == 3
    assert orders_needed([0.0, 0.02, -0.02]) == MOST_ORDERS
    # a spread for which 5 pairs find a third of the claim at p < 0.01 in nine of ten tries, by simulation
    spread = 0.00075
    pairs = orders_needed(np.array([-1, 0, 1]) * spread)
    samples = np.random.default_rng(0).normal(CLAIM / 3, spread, (20_000, pairs))
    assert (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.01).mean() >= 0.9


def make_record(kept: Path, trunk, arm: str, order: int, loss: float, share: float = LONG) -> None:
    (branches,) = [each for each in trunk.branches if (each.arm, each.share) == (arm, share)]
    folder = kept / "runs" / record_name(trunk, branches, order)
    folder.mkdir(parents=True)
    about = {
        "name": branches.variant,
        "copies": 1,
        "seed": order,
        "seq_length": 256,
        "global_batch_size": 16,
        "train_iters": 1,
        "parameters": trunk.parameters,
        "flops_per_token": 1.0,
    }
    (folder / "phd_run.json").write_text(json.dumps(about))
    point = {"iteration": 1, "tokens": 4096, "flops": 1.0, "time": 1.0}
    lines = [{"kind": "train", **point, "lm loss": 3.0}, {"kind": "validation", **point}]
    lines[1]["lm loss validation"] = loss
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_rows_pair_by_order_and_are_corrected(tmp_path):
    gains = {SMALL: 0.001, LARGEST: 0.008}
    for trunk, gain in gains.items():
        for order, noise in ((1, 0.0002), (2, -0.0001), (3, 0.0)):
            make_record(tmp_path, trunk, VANILLA, order, 2.0 + order)
            make_record(tmp_path, trunk, PRIMARY, order, 2.0 + order - gain + noise)
            make_record(tmp_path, trunk, VANILLA, order, 2.0 + order, SHORT)
            make_record(tmp_path, trunk, AGAIN, order, 2.0 + order + noise, SHORT)
    make_record(tmp_path, LARGEST, PRIMARY, 4, 1.0)  # without vanilla it is no pair
    rows = {(row.trunk, row.arm): row for row in read_rows(tmp_path)}
    assert len(rows) == 4
    primary = rows[LARGEST.name, PRIMARY]
    assert primary.primary and primary.p_corrected is None
    assert primary.difference.n == 3 and primary.difference.mean == pytest.approx(-0.008 + 0.0001 / 3)
    assert primary.verdict == "better by 0.005 or more"
    small = rows[SMALL.name, PRIMARY]
    # the smallest of three p-values, times three
    assert small.p_corrected == pytest.approx(min(1, 3 * small.difference.p))
    assert rows[SMALL.name, AGAIN].verdict == "undecided"
    assert slope_over_sizes(list(rows.values())) is None
    text = table(list(rows.values()), None)
    assert text.count("\n| ") == 4 and "| primary | 1.80 | better by 0.005 or more |" in text


def test_slope_over_sizes(tmp_path):
    for trunk in TRUNKS:
        for order in (1, 2, 3):
            make_record(tmp_path, trunk, VANILLA, order, 3.0)
            gain = 0.002 * math.log10(trunk.parameters) + 0.0001 * (order - 2)
            make_record(tmp_path, trunk, PRIMARY, order, 3.0 - gain)
    slope = slope_over_sizes(read_rows(tmp_path))
    assert slope is not None
    assert slope["orders"]["slope"] == pytest.approx(-0.002) and slope["orders"]["p"] < 1e-6
    assert slope["trunks"]["slope"] == pytest.approx(-0.002)


def test_more_orders_wait_for_the_first_three(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.evidence.run.KEPT", tmp_path)
    for order, difference in ((1, 0.01), (2, -0.01), (3, 0.0)):
        assert more_orders(SMALL) == []
        make_record(tmp_path, SMALL, VANILLA, order, 3.0)
        make_record(tmp_path, SMALL, PRIMARY, order, 3.0 + difference)
    assert more_orders(SMALL) == list(range(4, MOST_ORDERS + 1))


def test_of_a_kept_record_every_tenth_iteration_stays(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "iteration": iteration} for iteration in range(1, 25)]
    lines += [{"kind": "validation", "iteration": 24}]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    thin(metrics)
    kept = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [(line["kind"], line["iteration"]) for line in kept] == [
        *(("train", iteration) for iteration in (10, 20, 24)),
        ("validation", 24),
    ]


def test_kept_records_name_no_path_of_a_machine():
    """Also where a branch went on in another checkout than it began in."""
    absolute = re.compile(r"[\"\s=](/[\w.+-]+){2,}")
    for file in [*KEPT.rglob("*.json"), *KEPT.rglob("*.jsonl")]:
        found = absolute.search(file.read_text(encoding="utf-8"))
        assert found is None, (file, found and found[0])


def test_report_changes_its_part_of_the_page_alone(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    text = Path("docs/evidence.md").read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    monkeypatch.setattr("benchmarks.evidence.report.PAGE", page)
    monkeypatch.setattr("benchmarks.evidence.report.KEPT", tmp_path)
    monkeypatch.setattr("benchmarks.evidence.report.OUTPUT", tmp_path / "evidence.json")
    monkeypatch.setattr("benchmarks.evidence.report.PLOT", tmp_path / "evidence.png")
    make_record(tmp_path, SMALL, VANILLA, 1, 3.0)
    make_record(tmp_path, SMALL, PRIMARY, 1, 2.9)
    main()
    before, _, after = page.read_text(encoding="utf-8").partition("| trunk | length |")
    assert text.startswith(before) and "one order: undecided" in after
    assert (tmp_path / "evidence.png").read_bytes().startswith(b"\x89PNG")


def test_no_kept_branch_started_before_the_plan():
    for starts in KEPT.glob("runs/**/starts.jsonl"):
        first = json.loads(starts.read_text().splitlines()[0])
        begun = datetime.fromisoformat(first["since"])
        assert begun > datetime.fromisoformat(PLANNED), starts

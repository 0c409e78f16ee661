"""Statistics of the table against scipy's, and the table as text."""

import pytest
from scipy import stats

from benchmarks.probe.plan import ARMS, BASELINE, PROBES, SEEDS
from benchmarks.probe.table import COLUMNS, markdown, summarize

PHD = "PHD-CSWA-2-16-32"
ACCURACIES = {BASELINE: [0.61, 0.64, 0.6, 0.66, 0.63], PHD: [0.7, 0.71, 0.72, 0.74, 0.69]}


def cells(task="parity", accuracies=ACCURACIES, seeds=SEEDS):
    """In an order that is not the seeds'."""
    return [
        {"task": task, "arm": arm, "seed": seed, "accuracy": accuracy}
        for arm, values in accuracies.items()
        for seed, accuracy in reversed([*zip(seeds, values, strict=True)])
    ]


def test_pairs_are_by_seed():
    row = summarize(cells())["parity"]["arms"][PHD]
    pairs = [a - b for a, b in zip(ACCURACIES[PHD], ACCURACIES[BASELINE], strict=True)]
    expected = stats.ttest_1samp(pairs, 0)
    interval = expected.confidence_interval(0.99)
    found = row["difference"]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(
        (sum(pairs) / 5, interval.low, interval.high)
    )
    assert found["p"] == found["p_holm"] == pytest.approx(expected.pvalue)  # the only test
    interval = stats.ttest_1samp(ACCURACIES[PHD], 0).confidence_interval(0.99)
    assert (row["mean"]["low"], row["mean"]["high"]) == pytest.approx((interval.low, interval.high))
    assert [*row["accuracies"]] == [*SEEDS]


def test_holm_is_over_the_whole_table():
    report = summarize(cells() + cells("hop", {BASELINE: [0.4] * 5, PHD: [0.41, 0.39, 0.4, 0.42, 0.37]}))
    parity, hop = (report[task]["arms"][PHD]["difference"] for task in ("parity", "hop"))
    assert parity["p"] < hop["p"]
    assert parity["p_holm"] == pytest.approx(2 * parity["p"]) and hop["p_holm"] == hop["p"]


def test_unfinished_cells_are_left_out():
    """A seed without a vanilla cell has no pair; an arm of one pair has no test."""
    values = {BASELINE: ACCURACIES[BASELINE][:1], PHD: ACCURACIES[PHD][:1]}
    report = summarize(cells(seeds=[1], accuracies=values) + cells(seeds=[2], accuracies={PHD: [0.9]}))
    row = report["parity"]["arms"][PHD]
    assert (row["mean"]["n"], row["difference"]["n"]) == (2, 1)
    assert row["difference"]["mean"] == pytest.approx(0.7 - 0.61)
    assert report["hop"]["arms"][PHD]["mean"] is report["hop"]["arms"][PHD]["difference"] is None
    assert f"| {PHD} | 2 |" in markdown(report)


def test_markdown():
    text = markdown(summarize(cells()))
    table, caption = text.split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert len(rows) == 2 + len(PROBES) * (1 + len(ARMS))
    assert rows[0] == [*COLUMNS]
    vanilla, phd = rows[3], rows[4]
    assert vanilla[0] == BASELINE and "(1.00x)" in vanilla[3] and vanilla[6:] == ["-", "-", "-"]
    # by hand: mean 0.628, standard deviation 0.02387, t(0.995, 4) = 4.604
    assert vanilla[5] == "62.8 [57.9, 67.7]"
    assert phd[0] == PHD and phd[6].startswith("+8.4 [+") and phd[8].endswith("*")
    assert "for the 1 tests of the table" in caption and "99%" in caption

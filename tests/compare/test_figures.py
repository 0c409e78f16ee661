import json

import pytest

from phd.compare import figures as module
from phd.compare.figures import figures
from phd.compare.groups import group_runs
from phd.compare.logs import find_runs
from phd.compare.panels import COLORS, expand
from tests.compare.conftest import PHD, write_metrics

ALL = [
    *("Training loss", "Training loss by compute", "Validation loss", "Validation loss by compute"),
    *("Validation loss minus the baseline's", "Validation loss by time"),
    *("Last copy (solid) and original copy (dotted)", "Validation loss: code", "Validation loss: wiki"),
    *("Gradient norm", "Learning rate", "Throughput", "Compute per device", "Model FLOPs utilization"),
]


def drawn(*folders):
    groups = group_runs([run for folder in folders for run in find_runs(folder)])
    found = figures(expand(run for group in groups for run in group.runs), groups)
    return {panel.title: figure for panel, figure in found}


def test_panels_without_data_are_left_out(make_run, make_full_run):
    assert list(drawn(make_full_run("v"), make_full_run("p", shift=-0.25, **PHD))) == ALL
    some = list(drawn(make_run("w")))
    assert some == [
        *("Training loss", "Training loss by compute", "Validation loss", "Validation loss by compute"),
        *("Validation loss by time", "Gradient norm", "Throughput"),
    ]
    assert "Validation loss" not in drawn(make_run("x", iterations=3))


def test_colors_are_by_group_in_every_panel(make_full_run):
    runs = [
        *(make_full_run(f"v{seed}", seed=seed) for seed in (1, 2)),
        *(make_full_run(f"p{seed}", shift=-0.25 * seed, seed=seed, **PHD) for seed in (1, 2)),
    ]
    for figure in drawn(*runs).values():
        for trace in figure["data"]:
            assert (trace["line"].get("color") or trace["fillcolor"]) == COLORS[trace["meta"]]


def test_places_of_points(make_full_run):
    found = drawn(make_full_run("v"), make_full_run("p", shift=-0.25, **PHD))
    first = {title: figure["data"][0] for title, figure in found.items()}
    assert first["Validation loss"]["x"] == [40, 80, 120, 160]
    assert first["Validation loss by compute"]["x"] == [tokens * 6000.0 for tokens in (40, 80, 120, 160)]
    assert first["Validation loss by time"]["x"] == pytest.approx([s / 3600 for s in (4, 9, 14, 19)])
    assert first["Validation loss"]["y"] == pytest.approx([4.75, 4.25, 3.75, 3.25])
    (difference,) = found["Validation loss minus the baseline's"]["data"]
    assert difference["y"] == pytest.approx([-0.25] * 4) and difference["meta"] == 1


def test_original_copy_is_dotted_beside_the_last(make_full_run):
    lines = drawn(make_full_run("v"), make_full_run("p", **PHD))[ALL[6]]["data"]
    assert [(line["meta"], line["line"]["dash"]) for line in lines] == [
        (0, "solid"),
        (1, "solid"),
        (1, "dot"),
    ]
    assert lines[2]["y"] == pytest.approx([loss + 0.25 for loss in lines[1]["y"]])


def test_names_are_no_html(make_run):
    found = drawn(make_run("v", name="<b>v"))
    assert all(trace["name"].startswith("&lt;b&gt;v, seed 1234") for trace in found["Training loss"]["data"])


def test_long_curves_are_smoothed_and_thinned(make_run, monkeypatch):
    monkeypatch.setattr(module, "POINTS", 5)
    path = make_run("v", train_iters=60)
    write_metrics(path, {iteration: 3.0 + iteration % 2 for iteration in range(1, 61)}, {})
    measured, smoothed = drawn(path)["Training loss"]["data"]
    assert measured["opacity"] < smoothed["opacity"] == 1
    assert measured["x"][-1] == smoothed["x"][-1] == 60 * 8 and len(measured["x"]) == len(smoothed["x"]) == 5
    assert smoothed["y"][-1] == pytest.approx(3.5, abs=0.03)


def test_several_pairs_have_a_band(make_run):
    runs = [
        make_run(f"{name}{seed}", shift=shift * seed, seed=seed, **about)
        for seed in (1, 2)
        for name, shift, about in (("v", 0.0, {}), ("p", -0.5, PHD))
    ]
    data = drawn(*runs)["Validation loss minus the baseline's"]["data"]
    names = [trace.get("name") for trace in data]
    seeds = [f"{PHD['name']}, seed {seed}" for seed in (1, 2)]
    assert names == [None, *seeds, f"{PHD['name']}, mean of 2 pairs"]
    assert data[0]["fill"] == "toself"


def test_diverged_run_is_json(make_run):
    path = make_run("v")
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text.replace('"lm loss": ', '"lm loss": null, "was": '))
    found = drawn(path)
    json.dumps(found, allow_nan=False)
    assert set(found["Training loss"]["data"][0]["y"]) == {None}
    assert found["Training loss"]["layout"]["yaxis"]["range"] is None

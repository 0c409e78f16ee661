import json
import re
from html.parser import HTMLParser

import pytest

from phd.compare import page as module
from phd.compare.groups import group_runs
from phd.compare.logs import find_runs
from phd.compare.page import PANELS, page
from phd.compare.summary import summarize
from tests.compare.conftest import PHD

HOSTILE = "</script><img src=x>"


class Loaded(HTMLParser):
    """Collects the tags, what they would load, and the text of table cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.cells = [], [], []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.in_cell = tag in ("td", "th")
        if self.in_cell:
            self.cells.append("")

    def handle_endtag(self, tag):
        self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.cells[-1] += data


def traces(text):
    """The curves of the page, as plotly is given them."""
    start = re.search(r'Plotly\.newPlot\(\s*"[\w-]+",\s*', text)
    assert start is not None
    return json.JSONDecoder().raw_decode(text, start.end())[0]


@pytest.fixture
def text(make_run):
    folders = [
        make_run("v1", seed=1),
        make_run("v2", shift=0.1, seed=2),
        make_run("p1", shift=-0.25, seed=1, **PHD),
        make_run("p2", shift=-0.26, seed=2, **PHD),
        make_run("h", shift=-0.5, seed=1, **PHD | {"name": HOSTILE}),
    ]
    groups = group_runs([run for folder in folders for run in find_runs(folder)])
    return page("A <b>comparison</b>", groups, summarize(groups))


def test_nothing_is_loaded(text):
    found = Loaded(text)
    assert found.loads == []
    assert not {"link", "img", "iframe", "b"} & set(found.tags)
    assert "@import" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_table_has_every_group(text):
    cells = Loaded(text).cells
    assert {"vanilla", PHD["name"], HOSTILE, "-0.3050 \u00b10.6988", "2.576 (1.2B)"} <= set(cells)


def test_legend_switches_every_panel_of_a_group(text):
    drawn = traces(text)
    legend = [trace["legendgroup"] for trace in drawn if trace.get("showlegend", True)]
    assert legend == ["vanilla", PHD["name"], HOSTILE]
    axes = {group: {trace["xaxis"] for trace in drawn if trace["legendgroup"] == group} for group in legend}
    assert len(axes[PHD["name"]]) == len(axes[HOSTILE]) == len(PANELS)
    assert len(axes["vanilla"]) == len(PANELS) - 1  # it has no difference to itself


def test_curves_name_their_run(text):
    names = [trace["name"] for trace in traces(text)]
    for expected in ("vanilla, seed 1, training", f"{PHD['name']}, seed 2, validation"):
        assert names.count(expected) == 2  # against tokens and against FLOPs
    assert f"{PHD['name']}, mean of 2 pairs" in names
    # Plotly reads names as HTML.
    assert all("<" not in name for name in names)


def test_long_curves_are_thinned(make_run, monkeypatch):
    monkeypatch.setattr(module, "POINTS", 5)
    groups = group_runs(find_runs(make_run("v")))
    (trace, _) = [
        trace for trace in traces(page("t", groups, summarize(groups))) if "training" in trace["name"]
    ]
    assert len(trace["x"]) == 5 and trace["x"][-1] == 160


def test_unfinished_run_without_validation(make_run):
    groups = group_runs(find_runs(make_run("v", iterations=3)))
    assert "vanilla (at 15%)" in Loaded(page("t", groups, summarize(groups))).cells

import json
import re
from html.parser import HTMLParser

import pytest

from phd.compare import page as module
from phd.compare.groups import group_runs
from phd.compare.logs import find_runs
from phd.compare.page import page
from phd.compare.summary import summarize
from tests.compare.conftest import PHD

HOSTILE = "</script><img src=x>"


class Loaded(HTMLParser):
    """Collects the tags, what they would load, and the texts of some."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads = [], []
        self.texts = {tag: [] for tag in ("td", "th", "h3", "button", "script")}
        self.open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag in self.texts:
            self.open = tag
            self.texts[tag].append("")

    def handle_endtag(self, tag):
        if tag == self.open:
            self.open = None

    def handle_data(self, data):
        if self.open:
            self.texts[self.open][-1] += data


def made(*folders):
    groups = group_runs([run for folder in folders for run in find_runs(folder)])
    return page("A <b>comparison</b>", summarize(groups))


@pytest.fixture
def text(make_full_run):
    return made(
        make_full_run("v1", seed=1),
        make_full_run("v2", shift=0.1, seed=2),
        make_full_run("p1", shift=-0.25, seed=1, **PHD),
        make_full_run("p2", shift=-0.26, seed=2, **PHD),
        make_full_run("h", shift=-0.5, seed=1, **PHD | {"name": HOSTILE}),
    )


def test_nothing_is_loaded(text):
    found = Loaded(text)
    assert found.loads == []
    assert not {"link", "img", "iframe", "b"} & set(found.tags)
    assert "@import" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_table_has_every_group(text):
    cells = Loaded(text).texts["td"]
    assert {"vanilla", PHD["name"], HOSTILE, "-0.3050 \u00b10.6988", "2.576 (1.2B)"} <= set(cells)


def test_one_button_for_each_group(text):
    assert Loaded(text).texts["button"] == ["vanilla", PHD["name"], HOSTILE]


def test_figures_survive_in_the_script(text):
    found = Loaded(text)
    figures = json.loads(found.texts["script"][0])
    assert len(figures) == found.texts["h3"].index("vanilla, seed 1") == 14
    assert {trace["meta"] for trace in figures[0]["data"]} == {0, 1, 2}


def test_samples_are_newest_first_by_run(text, make_full_run, monkeypatch):
    found = Loaded(text)
    runs = [f"{name}, seed {seed}" for name in ("vanilla", PHD["name"]) for seed in (1, 2)]
    assert found.texts["h3"][14:] == [*runs, f"{HOSTILE}, seed 1"]
    cells = found.texts["td"]
    first = cells.index("Once <b>") - 1
    assert cells[first : first + 9] == [
        *("160", "Once <b>", "at 20\nit was", "160", "2 +", " 2", "120", "Once <b>", "at 15\nit was")
    ]
    monkeypatch.setattr(module, "SAMPLES", 1)
    assert Loaded(made(make_full_run("one"))).texts["td"].count("Once <b>") == 1


def test_unfinished_run_without_validation_or_samples(make_run):
    found = Loaded(made(make_run("v", iterations=3)))
    assert "vanilla (at 15%)" in found.texts["td"]
    assert "continued" not in found.texts["th"]

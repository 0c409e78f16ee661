import io
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
import wandb
from wandb_workspaces.reports.v2 import interface

from phd.compare.groups import group_runs
from phd.compare.logs import find_runs
from phd.compare.panels import COLORS, PANELS
from phd.compare.summary import summarize
from phd.compare.workspace import make_report, make_workspace, reason, unreachable
from tests.compare.conftest import PHD

KEY = "0123456789" * 4
PLACE = ("team", "project")


def read(*folders, vary=()):
    return group_runs([run for folder in folders for run in find_runs(folder)], vary)


def dumped(workspace):
    return workspace._to_model().model_dump(by_alias=True, exclude_none=True)


def panels(content):
    sections = content["spec"]["section"]["panelBankConfig"]["sections"]
    return {panel["config"].get("chartTitle"): panel for section in sections for panel in section["panels"]}


def test_workspace_has_every_panel_but_the_difference(make_run):
    found = panels(dumped(make_workspace(PLACE, "mine", read(make_run("v")))))
    expected = {
        panel.title for panel in PANELS if panel.kind in ("lines", "system") and "{" not in panel.title
    }
    assert set(found) == expected | {None}  # a table has no title
    loss = found["Training loss"]["config"]
    assert (loss["xAxis"], loss["metrics"]) == ("tokens", ["lm loss"])
    assert (loss["smoothingType"], loss["smoothingWeight"]) == ("exponential", 0.95)
    assert found["Validation loss by compute"]["config"]["xAxis"] == "flops"
    assert found["Validation loss by time"]["config"]["xAxis"] == "_absolute_runtime"
    assert found["Gradient norm"]["config"]["yLogScale"] is True
    assert found["GPU utilization"]["config"]["metricRegex"] == r"system/gpu\.\d+\.gpu$"


def test_samples_are_a_table_of_the_runs_summaries(make_run):
    table = panels(dumped(make_workspace(PLACE, "mine", read(make_run("v")))))[None]
    assert table["viewType"] == "Weave"
    key = table["config"]["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]
    assert key["val"] == "samples"


def test_named_sets_stand_for_their_mean(make_full_run):
    found = panels(dumped(make_workspace(PLACE, "mine", read(make_full_run("p", **PHD)))))
    both = ["lm loss validation-code", "lm loss validation-wiki"]
    assert found["Validation loss"]["config"]["metrics"] == both
    assert found["Validation loss: wiki"]["config"]["metrics"] == both[1:]
    original = [name.replace("lm loss", "lm loss original") for name in both]
    assert found["Last copy (solid) and original copy (dotted)"]["config"]["metrics"] == both + original


def test_runs_are_those_of_the_folder_above_by_variant(make_run):
    groups = read(
        make_run("big/v"), make_run("big/p", **PHD), make_run("small/q", **PHD | {"name": "naive-2"})
    )
    content = dumped(make_workspace(PLACE, "mine", groups))
    assert (content["entity"], content["project"], content["displayName"]) == (*PLACE, "mine")
    section = content["spec"]["section"]
    (runs,) = section["runSets"]
    (rule,) = runs["filters"]["filters"]
    assert (rule["key"]["name"], rule["op"], rule["value"]) == ("group", "IN", ["big", "small"])
    assert [key["name"] for key in runs["grouping"]] == ["phd.value.name"]
    assert list(section["customRunColors"].values()) == list(COLORS[:3])


def test_vary_groups_further(make_run):
    groups = read(make_run("v"), make_run("w", train_iters=40), vary=["train_iters"])
    section = dumped(make_workspace(PLACE, "mine", groups, ["train_iters"]))["spec"]["section"]
    assert [key["name"] for key in section["runSets"][0]["grouping"]] == [
        "phd.value.name",
        "train_iters.value",
    ]
    assert section["customRunColors"] == {}


def test_report_has_the_table_and_the_panels(make_run, monkeypatch):
    monkeypatch.setattr(interface, "_get_api", lambda: None)
    answer = {"project": {"internalId": "7"}}
    monkeypatch.setattr(interface, "execute_graphql", lambda *args, **kwargs: answer)
    groups = read(make_run("it's/v"), make_run("it's/p", shift=-0.25, **PHD))
    report = make_report(PLACE, "n" * 200, summarize(groups))
    assert report.title == "n" * 128
    blocks = report._to_model().spec.model_dump(by_alias=True, exclude_none=True)["blocks"]
    (table,) = [block for block in blocks if block["type"] == "markdown-block"]
    assert f"| {PHD['name']} |" in table["content"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert len(grids) == len({panel.section for panel in PANELS if panel.section != "Validation sets"})
    (runs,) = grids[0]["runSets"]
    assert runs["filters"]["filters"][0]["value"] == ["it's"]
    assert runs["grouping"] == [{"section": "config", "name": "phd.value.name"}]
    shown = grids[0]["panelBankSectionConfig"]["panels"][0]["config"]
    assert shown["metrics"] == ["lm loss"]


@pytest.fixture
def online(monkeypatch):
    """As if a server answered and a key was there."""
    monkeypatch.setenv("WANDB_MODE", "online")
    settings = SimpleNamespace(mode="online", base_url="https://wandb.example")
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO())


def raising(error):
    def call(*args, **kwargs):
        raise error

    return call


def test_reachable(online, monkeypatch):
    assert unreachable() is None
    denied = urllib.error.HTTPError("https://wandb.example", 403, "no", {}, None)
    monkeypatch.setattr(urllib.request, "urlopen", raising(denied))
    assert unreachable() is None


def test_why_it_is_out_of_reach(online, monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    assert "no API key was found" in str(unreachable())
    monkeypatch.setattr(wandb, "login", raising(RuntimeError(f"key {KEY} is\nnot valid")))
    assert unreachable() == "key *** is not valid"
    monkeypatch.setattr(urllib.request, "urlopen", raising(urllib.error.URLError("no route")))
    assert unreachable() == "https://wandb.example does not answer (<urlopen error no route>)"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert unreachable() == "WANDB_MODE is offline"


@pytest.mark.parametrize("key", [KEY, "local-" + KEY, "wandb_v1_" + "Ab9_" * 20, "short"])
def test_keys_are_never_shown(monkeypatch, key):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert key not in reason(ValueError(f"header Bearer {key} refused"))
    assert KEY not in reason(ValueError(key))


def test_reason_is_one_line_and_never_empty():
    assert reason(ValueError("a\n b")) == "a b"
    assert reason(TimeoutError()) == "TimeoutError"

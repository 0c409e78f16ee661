import json

import pytest
from wandb_workspaces.reports.v2 import Report
from wandb_workspaces.workspaces import Workspace

from phd.commands import cli
from phd.compare import workspace
from tests.compare.conftest import PHD


def dashboard(*arguments):
    return cli.main(["dashboard", *map(str, arguments)])


@pytest.fixture
def runs(make_full_run):
    return make_full_run("151m/v"), make_full_run("151m/p", shift=-0.25, **PHD)


def test_page_is_written(runs, tmp_path, capsys):
    output = tmp_path / "new" / "page.html"
    assert dashboard(*runs, "--output", output) == 0
    assert capsys.readouterr().out == f"Written: {output}\n"
    assert "<h1>151m</h1>" in output.read_text()
    assert dashboard(*runs, "--output", output, "--name", "A & B") == 0
    assert "<h1>A &amp; B</h1>" in output.read_text()
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("text", ["project", "/project", "entity/", "a/b/c"])
def test_wandb_wants_entity_and_project(runs, text, capsys):
    with pytest.raises(SystemExit):
        dashboard(*runs, "--wandb", text)
    assert f"{text} is not of the form ENTITY/PROJECT" in capsys.readouterr().err


def test_out_of_reach_the_page_and_the_workspace_are_written(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workspace, "unreachable", lambda: "WANDB_MODE is offline")
    output = tmp_path / "new" / "page.html"
    assert dashboard(*runs, "--output", output, "--wandb", "team/project") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "Workspace and report not saved in W&B: WANDB_MODE is offline"
    beside = output.with_name("page.workspace.json")
    assert rest == [f"Written: {output}", f"Written: {beside}"]
    content = json.loads(beside.read_text())
    assert (content["entity"], content["project"], content["displayName"]) == ("team", "project", "151m")


def saved(text):
    return property(lambda self: text)


def test_saved_in_wandb(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workspace, "unreachable", lambda: None)
    for kind, url in ((Workspace, "https://w"), (Report, "https://r")):
        monkeypatch.setattr(kind, "save", lambda self: self)
        monkeypatch.setattr(kind, "url", saved(url))
    output = tmp_path / "page.html"
    assert dashboard(*runs, "--output", output, "--wandb", "team/project") == 0
    assert capsys.readouterr().out.splitlines() == ["Workspace: https://w", "Report: https://r"]
    assert not output.exists()


def test_error_while_saving_leaves_the_page(runs, tmp_path, capsys, monkeypatch):
    def refuse(self):
        raise RuntimeError("permission denied")

    monkeypatch.setattr(workspace, "unreachable", lambda: None)
    monkeypatch.setattr(Workspace, "save", lambda self: self)
    monkeypatch.setattr(Workspace, "url", saved("https://w"))
    monkeypatch.setattr(Report, "save", refuse)
    output = tmp_path / "page.html"
    assert dashboard(*runs, "--output", output, "--wandb", "team/project") == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert (first, second) == ("Workspace: https://w", "Report not saved in W&B: permission denied")
    assert output.exists()


def test_no_runs(tmp_path, capsys):
    assert dashboard(tmp_path) == 2
    assert "no phd_run.json" in capsys.readouterr().err

"""README.md and pages of docs/ keep to the code and to the committed measurements."""

import dataclasses
import json
import re

import pytest

from phd.config import PHDConfig
from tests.world import ROOT

PAGES = ("README.md", "docs/training.md", "docs/results.md", "docs/support.md")
README, TRAINING, RESULTS, SUPPORT = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES)


def measured(file: str) -> dict:
    return json.loads((ROOT / "benchmarks" / file).read_text())


def test_support_matrix_names_every_refused_flag():
    """And its table names nothing that is not refused."""
    files = (ROOT / "phd" / "training" / name for name in ("unsupported.py", "never.py"))
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    entries = re.findall(r'Unsupported\(\s*"(--[^"]+)"', source.replace('"\n        "', ""))
    assert len(entries) > 25
    shown = {re.sub(r"(--[\w-]+)", r"`\1`", entry) for entry in entries}
    assert [entry for entry in shown if entry not in SUPPORT] == []
    table = SUPPORT.split("| refused | |\n|---|---|\n")[1].split("\n\n")[0]
    cells = {cell.strip() for cell in re.split(r"[|\n]", table)} - {""}
    # the one refusal that is a check of its own: phd.training.unsupported.refuse_empty_last_stage
    assert cells - shown == {"a last pipeline stage without a layer to prune"}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PHDConfig)])
def test_every_flag_is_explained(field):
    off = "no-" if getattr(PHDConfig, field) is True else ""
    assert f"`--{off}{field.replace('_', '-')}" in TRAINING


def test_readme_is_one_screen_and_a_half():
    lines = README.splitlines()
    assert len(lines) <= 130 and max(map(len, (line for line in lines if line[:1] not in "|!"))) <= 120


def test_every_data_command_is_named():
    source = (ROOT / "data_tools" / "cli.py").read_text(encoding="utf-8")
    commands = re.findall(r'^        \(\s*"([\w-]+)",\s*"', source, re.MULTILINE)
    assert len(commands) == 10
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    for command in [*commands, "prepare"]:
        assert f"`phd data {command}`" in page


def test_links_and_scripts_exist():
    for path in re.findall(r"\]\(([\w./]+)\)", README) + re.findall(r"(examples/\w+\.sh)", README):
        assert (ROOT / path).exists(), path

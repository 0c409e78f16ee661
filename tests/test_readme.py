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


def test_attention_numbers_are_the_benchmarks():
    results = measured("attention.json")["results"]
    table = re.findall(r"^\| (\d) \| \d \| ([\d.]+) \|.*\| ([\d.]+) \|$", RESULTS, re.MULTILINE)
    assert len(table) == 3
    for copies, times_vanilla, over_floor in table:
        (row,) = [row for row in results if row["K"] == int(copies)]
        assert f"{row['methods']['phd']['times_vanilla']:.2f}" == times_vanilla
        assert f"{row['phd_times_floor']:.2f}" == over_floor


def test_demo_numbers_are_the_recorded_ones():
    for row in measured("demo.json")["runs"]:
        assert f"{row['validation_loss']:.4f}" in RESULTS


def test_readme_is_one_screen_and_a_half():
    lines = README.splitlines()
    assert len(lines) <= 130 and max(map(len, (line for line in lines if line[:1] not in "|!"))) <= 120


def test_full_demo_numbers_are_the_recorded_ones():
    runs = measured("demo_full.json")["runs"]
    differences = [
        row["difference"] for row in runs if row["seed"] != "mean" and row["difference"] is not None
    ]
    assert len(differences) == 6
    for difference in differences:
        assert f"{difference:+.4f}" in RESULTS


def test_latency_numbers_are_the_benchmarks():
    report = measured("latency.json")
    ratios = {(row["prompt"], row["style"], row["copies"]): row for row in report["prefill"]}
    steps = {(row["style"], row["copies"]): row for row in report["decode"]}
    table = re.findall(r"^\| (\d+) \|((?: [\d.]+ \(floor [\d.]+\) \|){4}) ([\d.]+) \|", RESULTS, re.MULTILINE)
    assert [int(copies) for copies, *_ in table] == [2, 4, 8, 16]
    for copies, cells, step in table:
        shown = re.findall(r"([\d.]+) \(floor ([\d.]+)\)", cells)
        columns = [(2048, "PHD-CSWA"), (8192, "PHD-CSWA"), (2048, "PHD-SWA"), (8192, "PHD-SWA")]
        for (ratio, floor), (prompt, style) in zip(shown, columns, strict=True):
            row = ratios[prompt, style, int(copies)]
            assert (ratio, floor) == (f"{row['ratio']:.2f}", f"{row['floor']:.2f}")
        assert step == f"{steps['PHD-CSWA', int(copies)]['ratio']:.2f}"


def test_hybrid_numbers_are_the_benchmarks():
    report = measured("longgen.json")["lengths"]["32768"]
    for name in ("longgen-sink", "longgen-block"):
        row = report[name]
        speeds = (f"{row[f'{what}_times_as_fast']:.2f}" for what in ("train", "prefill", "decode"))
        parts = f"{row['flops_to_full']:.3f} | {row['kv_to_full']:.3f}"
        assert f"| {name} | {' | '.join(speeds)} | {parts} |" in RESULTS


def test_needle_numbers_are_the_benchmarks():
    report = measured("longgen_needle.json")
    for name, means in report["means"].items():
        assert f"| {name} | {' | '.join(f'{mean:.0%}' for mean in means)} |" in RESULTS
    prompts, depths = report["settings"]["prompts"], report["grids"]["full attention"]["depths"]
    assert len(report["means"]) == 6
    assert f"{prompts} prompts at each of {len(depths)} depths" in RESULTS


def test_headlines_are_the_benchmarks():
    """The table of what it reaches."""
    attention = {row["K"]: row for row in measured("attention.json")["results"]}
    over_floor = ", ".join(f"{attention[copies]['phd_times_floor']:.2f}" for copies in (2, 3, 5))
    assert f"| {over_floor} times its floor of K vanilla calls |" in README
    assert f"{attention[5]['methods']['dense mask']['times_vanilla']:.1f} vanilla calls |" in README
    (row,) = (
        row
        for row in measured("latency.json")["prefill"]
        if (row["prompt"], row["style"], row["copies"]) == (8192, "PHD-CSWA", 16)
    )
    assert f"| {row['ratio']:.2f} times vanilla | floor {row['floor']:.2f};" in README
    hybrid = measured("longgen.json")["lengths"]["32768"]["longgen-sink"]
    speeds = ", ".join(f"{hybrid[f'{what}_times_as_fast']:.2f}" for what in ("train", "prefill", "decode"))
    assert f"| {speeds} times as fast as full attention |" in README
    means = measured("longgen_needle.json")["means"]
    cells = (means["longgen-sink"], means["full attention"], means["full; sliding window at inference"])
    sink, full, window = (f"{mean[-1]:.0%}" for mean in cells)
    assert f"| {sink} | full attention {full}; sliding window at inference {window} |" in README
    rates = measured("tokenize.json")["sentencepiece"]
    ours, loop = (f"{rates[name]['megabytes_per_second']:.1f}" for name in ("phd", "Megatron's loop"))
    assert f"| {ours} MB/s | Megatron's own loop {loop}, the same ids |" in README


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


def test_reproduction_numbers_are_the_recorded_ones():
    comparison = measured("results/comparison.json")
    assert len(comparison["groups"]) == 5
    for group in comparison["groups"]:
        assert len(group["seeds"]) == 3
        difference = group["validation_difference"]
        cells = [group["label"], f"{group['validation_loss']['mean']:.4f}"]
        if difference is not None:
            half = (difference["high"] - difference["low"]) / 2
            cells += [f"{difference['mean']:+.4f} ±{half:.4f}", f"{difference['p']:.2f}"]
            cells += [str(difference["pairs_needed"])]
        row = " | ".join(cells)
        assert f"| {row} |" in RESULTS

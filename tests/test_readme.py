"""The README keeps to the code: the support matrix, the flags, the numbers, the files it names."""

import dataclasses
import json
import re

import pytest

from phd.config import PHDConfig
from tests.world import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_support_matrix_names_every_refused_flag():
    source = (ROOT / "phd" / "model" / "support.py").read_text(encoding="utf-8")
    entries = re.findall(r'Unsupported\(\s*"(--[^"]+)"', source)
    assert len(entries) > 25
    for entry in entries:
        for flag in re.findall(r"--[\w-]+", entry):
            assert f"`{flag}`" in README
        assert re.sub(r"(--[\w-]+)", r"`\1`", entry) in README


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PHDConfig)])
def test_every_flag_is_explained(field):
    off = "no-" if getattr(PHDConfig, field) is True else ""
    assert f"`--{off}{field.replace('_', '-')}" in README


def test_attention_numbers_are_the_benchmarks():
    results = json.loads((ROOT / "benchmarks" / "attention.json").read_text())["results"]
    table = re.findall(r"^\| (\d) \| \d \| ([\d.]+) \|.*\| ([\d.]+) \|$", README, re.MULTILINE)
    assert len(table) == 3
    for copies, times_vanilla, over_floor in table:
        (row,) = [row for row in results if row["K"] == int(copies)]
        assert f"{row['methods']['phd']['times_vanilla']:.2f}" == times_vanilla
        assert f"{row['phd_times_floor']:.2f}" == over_floor


def test_demo_numbers_are_the_recorded_ones():
    for row in json.loads((ROOT / "benchmarks" / "demo.json").read_text())["runs"]:
        assert f"{row['validation_loss']:.4f}" in README


def test_full_demo_numbers_are_the_recorded_ones():
    runs = json.loads((ROOT / "benchmarks" / "demo_full.json").read_text())["runs"]
    differences = [
        row["difference"] for row in runs if row["seed"] != "mean" and row["difference"] is not None
    ]
    assert len(differences) == 6
    for difference in differences:
        assert f"{difference:+.4f}" in README


def test_latency_numbers_are_the_benchmarks():
    report = json.loads((ROOT / "benchmarks" / "latency.json").read_text())
    ratios = {(row["prompt"], row["style"], row["copies"]): row for row in report["prefill"]}
    steps = {(row["style"], row["copies"]): row for row in report["decode"]}
    table = re.findall(r"^\| (\d+) \|((?: [\d.]+ \(floor [\d.]+\) \|){4}) ([\d.]+) \|", README, re.MULTILINE)
    assert [int(copies) for copies, *_ in table] == [2, 4, 8, 16]
    for copies, cells, step in table:
        shown = re.findall(r"([\d.]+) \(floor ([\d.]+)\)", cells)
        columns = [(2048, "PHD-CSWA"), (8192, "PHD-CSWA"), (2048, "PHD-SWA"), (8192, "PHD-SWA")]
        for (ratio, floor), (prompt, style) in zip(shown, columns, strict=True):
            row = ratios[prompt, style, int(copies)]
            assert (ratio, floor) == (f"{row['ratio']:.2f}", f"{row['floor']:.2f}")
        assert step == f"{steps['PHD-CSWA', int(copies)]['ratio']:.2f}"


def test_hybrid_numbers_are_the_benchmarks():
    report = json.loads((ROOT / "benchmarks" / "longgen.json").read_text())["lengths"]["32768"]
    for name in ("longgen-sink", "longgen-block"):
        row = report[name]
        speeds = (f"{row[f'{what}_times_as_fast']:.2f}" for what in ("train", "prefill", "decode"))
        parts = f"{row['flops_to_full']:.3f} | {row['kv_to_full']:.3f}"
        assert f"| {name} | {' | '.join(speeds)} | {parts} |" in README


def test_needle_numbers_are_the_benchmarks():
    report = json.loads((ROOT / "benchmarks" / "longgen_needle.json").read_text())
    for name, means in report["means"].items():
        assert f"| {name} | {' | '.join(f'{mean:.0%}' for mean in means)} |" in README
    prompts, depths = report["settings"]["prompts"], report["grids"]["full attention"]["depths"]
    assert len(report["means"]) == 6
    assert f"{prompts} prompts at each of {len(depths)} depths" in README


def test_every_data_command_is_named():
    source = (ROOT / "data_tools" / "cli.py").read_text(encoding="utf-8")
    commands = re.findall(r'^        \("([\w-]+)", "', source, re.MULTILINE)
    assert len(commands) == 7
    for command in [*commands, "prepare"]:
        assert f"`phd data {command}`" in README


def test_links_and_scripts_exist():
    for path in re.findall(r"\]\(([\w./]+)\)", README) + re.findall(r"(examples/\w+\.sh)", README):
        assert (ROOT / path).exists(), path


def test_reproduction_numbers_are_the_recorded_ones():
    comparison = json.loads((ROOT / "benchmarks/results/comparison.json").read_text())
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
        assert f"| {row} |" in README

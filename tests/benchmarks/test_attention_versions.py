import gc
import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import attention_versions
from benchmarks.attention_versions import CASES, CHUNK, DIM, GROUPS, HEADS, VERSIONS, WINDOW, Case, turns
from phd.rules.keys import Blocks, Full
from tests.attention.calls import attend, rule_of
from tests.world import ROOT


def test_turns_are_fair():
    """Any three rounds give each version the same places, and every round is a palindrome."""
    for number in range(5):
        assert turns(number) == turns(number)[::-1]
        for place in range(2 * len(VERSIONS)):
            assert {turns(number + more)[place] for more in range(3)} == set(VERSIONS)


def test_ratios(monkeypatch):
    """Of a machine that grows slower all the time: NEW takes 1.1 times as long, OLD again as long as OLD."""
    clock = 0

    def answers(speed: float):
        def seconds(name: str) -> float:
            nonlocal clock
            clock += 1
            return speed * (100 + clock)

        return seconds

    monkeypatch.setattr(attention_versions, "CASES", {"K=1": Case(8)})
    workers = {version: answers(1.1 if version == "new" else 1.0) for version in VERSIONS}
    (times,) = attention_versions.measure(workers, 15).values()
    result = attention_versions.summary(times)
    assert result["new_to_old"] == pytest.approx(1.1)
    assert result["noise"] == pytest.approx(1.0)
    shown = io.StringIO()
    Console(file=shown, width=120).print(attention_versions.table({"K=1": result}))
    assert "1.100 (1.100 to 1.100)" in shown.getvalue()


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_what_its_name_says(name):
    """Attention of the checkout that is imported, at a few positions more than one block."""
    case = CASES[name]
    case = case._replace(length=160)
    query, key, value = (
        torch.randn(case.length, case.copies, heads, DIM, generator=torch.Generator().manual_seed(heads))
        for heads in (HEADS, GROUPS, GROUPS)
    )
    each = case.length // case.documents
    rule = rule_of(case.copies, WINDOW, CHUNK, Blocks(*case.blocks) if case.blocks else Full())
    starts = torch.arange(case.length)[None] // each * each
    expected = attend(query, key, value, rule, backend="reference", document_starts=starts)
    torch.testing.assert_close(attention_versions.attention_of(case)(query, key, value), expected)


@pytest.fixture
def fake_worker(tmp_path, monkeypatch):
    """fake_worker(script): what a worker of ``tmp_path`` runs in place of Python."""

    def fake(script: str) -> None:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    return fake


def test_worker(fake_worker, tmp_path):
    fake_worker(f"echo {tmp_path}/phd.py; while read name; do echo 0.5; done")
    with attention_versions.worker(tmp_path, 1) as seconds:
        assert [seconds("K=1"), seconds("K=2")] == [0.5, 0.5]


def test_a_worker_that_ends(fake_worker, tmp_path):
    fake_worker(f"echo {tmp_path}/phd.py; read name")
    with (
        pytest.raises(RuntimeError, match=f"{tmp_path} has no answer for K=1"),
        attention_versions.worker(tmp_path, 1) as seconds,
    ):
        seconds("K=1")


def test_a_worker_of_another_checkout(fake_worker, tmp_path):
    fake_worker("echo /another/phd.py")
    with (
        pytest.raises(RuntimeError, match=f"worker of {tmp_path} has imported '/another/phd.py'"),
        attention_versions.worker(tmp_path, 1),
    ):
        pass


def test_serve(monkeypatch, capsys):
    """Where its attention is from, and a line for each name."""
    monkeypatch.setattr(attention_versions, "CASES", {"small": Case(65, 2)})
    monkeypatch.setattr(sys, "stdin", io.StringIO("small\nsmall\n"))
    try:
        attention_versions.serve(torch.get_num_threads())
    finally:
        gc.enable()
        gc.unfreeze()
    where, *answers = capsys.readouterr().out.splitlines()
    assert Path(where) == ROOT / "phd" / "attention" / "__init__.py"
    assert len(answers) == 2
    assert all(float(answer) > 0 for answer in answers)


def test_two_checkouts_are_named(capsys):
    with pytest.raises(SystemExit):
        attention_versions.main(["one"])
    assert "name two checkouts: OLD NEW" in capsys.readouterr().err

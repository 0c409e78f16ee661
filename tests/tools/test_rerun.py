"""CI's second try."""

import json
from pathlib import Path

import pytest

from tools import rerun

CASES = {
    "nothing": ([], "the suite failed without a failed test"),
    "three": (["tests/hf/a.py::b", "tests/hf/a.py::c", "tests/hf/a.py::d"], "3 tests failed"),
    "attention": (["tests/attention/kernels/test_a.py::b"], "must not fail by chance"),
    "a run": (["tests/hf/a.py::b", "tests/run/test_a.py::b"], "must not fail by chance"),
}


@pytest.mark.parametrize("names, why", CASES.values(), ids=CASES)
def test_no_second_try(names, why, tmp_path: Path, capsys):
    file = tmp_path / "failures.json"
    file.write_text(json.dumps(dict.fromkeys(names, "why")))
    assert rerun.main([str(file)]) == 1
    assert why in capsys.readouterr().out


def test_a_suite_that_broke_off_gets_none(tmp_path: Path):
    file = tmp_path / "failures.json"
    file.touch()
    assert rerun.main([str(file)]) == 1


@pytest.mark.parametrize("passes", [True, False])
def test_what_passes_alone_is_called_flaky(passes, tmp_path: Path, capsys, monkeypatch):
    test = tmp_path / "test_once.py"
    test.write_text(f"def test_a():\n    assert {passes}\n")
    file = tmp_path / "failures.json"
    file.write_text(json.dumps({f"{test}::test_a": "AssertionError: the first time"}))
    monkeypatch.chdir(tmp_path)
    assert rerun.main([str(file)]) == int(not passes)
    printed = capsys.readouterr().out
    assert ("FLAKY" in printed and "AssertionError: the first time" in printed) is passes

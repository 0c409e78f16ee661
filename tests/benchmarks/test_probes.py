"""benchmarks/probes.py: what is run, what is not run again, and what is written."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import probes
from benchmarks.probe.plan import ARMS, PROBES, SEEDS


@pytest.fixture
def trained(monkeypatch):
    """Cells that were run, in threads and without training."""
    keys = []

    def run_cell(task, arm, seed):
        if seed == 3:
            raise RuntimeError("no memory")
        keys.append((task, arm, seed))
        return {"accuracy": 0.5 + 0.01 * seed, "seconds": 2.0}

    monkeypatch.setattr(probes, "run_cell", run_cell)
    monkeypatch.setattr(probes, "ProcessPoolExecutor", lambda jobs, *_, **__: ThreadPoolExecutor(jobs))
    return keys


def files(folder):
    return ["--cells", str(folder / "cells.jsonl"), "--output", str(folder / "out.json"), "--jobs", "1"]


def test_finished_cells_are_not_run_again(trained, tmp_path, capsys):
    probes.main([*files(tmp_path), "--seeds", "1", "--only", "hop", "--arms", "vanilla"])
    assert trained == [("hop", "vanilla", 1)]
    probes.main([*files(tmp_path), "--seeds", "1", "--only", "hop"])
    assert trained == [("hop", arm, 1) for arm in ARMS]
    probes.main([*files(tmp_path), "--seeds", "1", "2"])
    assert len(trained) == len({*trained}) == 2 * len(PROBES) * len(ARMS)
    seeds = [seed for _, _, seed in trained]
    assert seeds == sorted(seeds)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["seconds_of_all_cells"] == 2 * len(trained)
    assert report["plan"]["seeds"] == [*SEEDS]
    assert report["tasks"]["hop"]["arms"]["vanilla"]["accuracies"] == {"1": 0.51, "2": 0.52}
    assert "| vanilla | 2 |" in capsys.readouterr().out


def test_a_failed_cell_leaves_the_finished_ones(trained, tmp_path):
    with pytest.raises(RuntimeError, match=f"{len(PROBES) * len(ARMS)} of 36 cells failed") as error:
        probes.main([*files(tmp_path), "--seeds", "2", "3"])
    assert str(error.value.__cause__) == "no memory"
    assert len(trained) == len(PROBES) * len(ARMS)
    probes.main([*files(tmp_path), "--table"])
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["seconds_of_all_cells"] == 2 * len(trained) == 2 * len(PROBES) * len(ARMS)


def test_cells_of_another_plan_end_in_one_line(trained, tmp_path):
    (tmp_path / "cells.jsonl").write_text('{"plan": {}}\n')
    with pytest.raises(SystemExit, match="^error: --cells .*move it away$"):
        probes.main(files(tmp_path))
    assert not trained

import json

import pytest

from benchmarks import attention
from tests.world import fork_server


@pytest.fixture(autouse=True, scope="module")
def _one_fork_server() -> None:
    """The benchmark would start one with torch alone, and starts of later tests would have no Megatron."""
    fork_server()


def test_measures_every_method(tmp_path, capsys):
    output = tmp_path / "attention.json"
    sizes = ["--lengths", "65", "--copies", "1", "2"]
    attention.main([*sizes, "--rounds", "2", "--threads", "1", "--output", str(output)])
    report = json.loads(output.read_text())
    assert report["complete"]
    assert [(result["s"], result["K"]) for result in report["results"]] == [(65, 1), (65, 2)]
    for result in report["results"]:
        for name, method in result["methods"].items():
            assert len(method["seconds"]) == method["rounds"] >= 2, name
            assert method["times_vanilla"] > 0
        rounds = result["phd_times_floor_rounds"]
        assert min(rounds) <= result["phd_times_floor"] <= max(rounds)
        least = min(min(result["methods"][name]["seconds"]) for name in attention.METHODS[:2])
        assert result["phd_times_floor_of_minima"] <= min(result["methods"]["phd"]["seconds"]) / (
            result["K"] * least
        )
    assert "dense mask" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [output]


def test_dense_mask_larger_than_memory_is_skipped(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(attention, "physical_memory", lambda: 8 * 130**2)
    output = tmp_path / "attention.json"
    sizes = ["--lengths", "65", "--copies", "2"]
    attention.main([*sizes, "--rounds", "1", "--threads", "1", "--output", str(output)])
    (result,) = json.loads(output.read_text())["results"]
    assert "skipped" in result["methods"]["dense mask"]
    assert "mask needs" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--lengths", "--copies", "--rounds", "--threads"])
def test_refuses_sizes_below_one(flag, capsys):
    with pytest.raises(SystemExit):
        attention.main([flag, "0"])
    assert f"{flag} must be at least 1" in capsys.readouterr().err

import json

import pytest

from phd.commands import cli
from tests.compare.conftest import PHD


def compare(*arguments):
    return cli.main(["compare", *map(str, arguments)])


def test_compare_writes_everything(make_run, tmp_path, capsys):
    baseline, phd = make_run("v"), make_run("p", shift=-0.25, **PHD)
    output = tmp_path / "new" / "result.v1"
    assert compare(baseline, phd, "--output", output) == 0
    assert PHD["name"] in capsys.readouterr().out
    numbers = json.loads((tmp_path / "new" / "result.v1.json").read_text())
    assert numbers["baseline"] == "vanilla"
    assert [run["difference"] for run in numbers["runs"]] == [None, pytest.approx(-0.25)]
    assert (tmp_path / "new" / "result.v1.png").read_bytes().startswith(b"\x89PNG")
    for end in ("html", "md", "tex"):
        assert PHD["name"] in (tmp_path / "new" / f"result.v1.{end}").read_text()
    assert len(list(output.parent.iterdir())) == 5


def test_criterion_and_sizes(make_run, tmp_path, capsys):
    runs = make_run("v"), make_run("p", shift=-0.25, **PHD)
    sizes = [make_run(f"size{n}", shift=4 * n**-0.5, parameters=1000 * n) for n in (1, 2, 4, 8)]
    flags = ("--alpha", 0.01, "--power", 0.9, "--sizes", *sizes, "--output", tmp_path / "out")
    assert compare(*runs, *flags) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "99% t-intervals" in text and "power of 90% at p < 0.01" in text
    assert "a law fitted to vanilla runs of 4 sizes" in text
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert (
        numbers["criterion"] == {"alpha": 0.01, "power": 0.9} and "vanilla runs of 4 sizes" in numbers["law"]
    )
    # The law is 4 sqrt(1000 / N) above its floor: 0.25 less at 1000 parameters is 3.75 of 4.
    assert numbers["groups"][1]["worth"]["parameters"] == pytest.approx((4 / 3.75) ** 2, rel=1e-3)
    assert compare(*runs, "--alpha", 2) == 2
    assert "--alpha must be between 0 and 1, got 2.0" in capsys.readouterr().err


def test_folder_named_twice_is_one_run(make_run, tmp_path):
    run = make_run("v")
    assert compare(run, f"{run}/", run.parent, "--output", tmp_path / "out") == 0
    assert len(json.loads((tmp_path / "out.json").read_text())["runs"]) == 1


@pytest.mark.parametrize("flag", ["--train-iters", "train-iters", "train_iters"])
def test_vary(make_run, tmp_path, flag, capsys):
    runs = make_run("v"), make_run("long", train_iters=40)
    assert compare(*runs, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "--train-iters 20" in error and "with 40" in error and "--vary train-iters" in error
    assert not (tmp_path / "out.json").exists()
    assert compare(*runs, f"--vary={flag}", "--output", tmp_path / "out") == 0
    groups = json.loads((tmp_path / "out.json").read_text())["groups"]
    assert [group["label"] for group in groups] == ["vanilla, train-iters 20", "vanilla, train-iters 40"]


def test_baseline(make_run, tmp_path, capsys):
    runs = make_run("v"), make_run("p", **PHD)
    assert compare(*runs, "--baseline", PHD["name"], "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out.json").read_text())["baseline"] == PHD["name"]
    assert compare(*runs, "--baseline", "other") == 2
    assert "--baseline other names 0 of the groups" in capsys.readouterr().err


def test_seeds_are_listed_on_request(make_run, tmp_path, capsys):
    run = make_run("v")
    for flags, listed in (((), False), (("--seeds",), True)):
        assert compare(run, *flags, "--output", tmp_path / "out") == 0
        assert ("seed 1234" in capsys.readouterr().out) == listed

import json

import pytest

from phd import cli


def test_compare_writes_table_plot_and_numbers(make_run, tmp_path, capsys):
    baseline, phd = make_run("v"), make_run("p", shift=-0.25, name="PHD-CSWA-2-16-32")
    output = tmp_path / "new" / "result.v1"
    assert cli.main(["compare", str(baseline), str(phd), "--output", str(output)]) == 0
    assert "PHD-CSWA-2-16-32" in capsys.readouterr().out
    records = json.loads((tmp_path / "new" / "result.v1.json").read_text())
    assert [record["difference"] for record in records] == [None, pytest.approx(-0.25)]
    assert (tmp_path / "new" / "result.v1.png").read_bytes().startswith(b"\x89PNG")


def test_folder_named_twice_is_one_run(make_run, tmp_path):
    run = make_run("v")
    assert cli.main(["compare", str(run), f"{run}/", "--output", str(tmp_path / "out")]) == 0
    assert len(json.loads((tmp_path / "out.json").read_text())) == 1

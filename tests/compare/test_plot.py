from matplotlib.image import imread

from phd.compare.logs import find_runs
from phd.compare.plot import plot
from phd.compare.report import group_runs
from tests.compare.conftest import write_events


def test_each_run_is_drawn_in_its_colour(make_run, tmp_path):
    runs = find_runs(make_run("v")) + find_runs(
        make_run("p", shift=-0.5, name="PHD-2", flops_per_token=12000.0)
    )
    plot(group_runs(runs), tmp_path / "plot.png")
    pixels = (imread(tmp_path / "plot.png")[..., :3] * 255).round().reshape(-1, 3).tolist()
    for color in ([31, 119, 180], [255, 127, 14]):  # matplotlib's C0 and C1
        assert pixels.count(color) > 100
    assert pixels.count([44, 160, 44]) == 0  # C2: no third run


def test_run_without_validation_is_drawn(tmp_path, make_run):
    path = make_run("v")
    for file in path.glob("events*"):
        file.unlink()
    write_events(path, {1: 3.0, 2: 2.5}, {})
    plot(group_runs(find_runs(path)), tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").ndim == 3

import io

from matplotlib.image import imread

from phd.compare.groups import group_runs
from phd.compare.logs import find_runs
from phd.compare.plot import plot
from tests.compare.conftest import PHD, write_metrics

BLUE, ORANGE, GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)  # matplotlib's C0 to C2


def panels(*folders):
    """The three of them, [pixels, rgb]."""
    image = imread(io.BytesIO(plot(group_runs([run for folder in folders for run in find_runs(folder)]))))
    rgb = (image[..., :3] * 255).round().astype(int)
    third = rgb.shape[1] // 3
    return [rgb[:, start : start + third].reshape(-1, 3) for start in (0, third, 2 * third)]


def count(panel, color):
    return (panel == color).all(axis=1).sum()


def test_each_group_is_drawn_in_its_colour(make_run):
    for panel in panels(make_run("v"), make_run("p", shift=-0.5, **PHD)):
        for color in (BLUE, ORANGE):
            assert count(panel, color) > 50
        assert count(panel, GREEN) == 0  # no third group


def test_several_pairs_have_a_band(make_run):
    runs = [
        make_run(f"{name}{seed}", shift=shift * seed, seed=seed, **about)
        for seed in (1, 2)
        for name, shift, about in (("v", 0.0, {}), ("p", -0.5, PHD))
    ]
    band = (255, 229, 206)  # a fifth of orange on white
    assert count(panels(*runs)[2], band) > 10_000
    assert count(panels(runs[0], runs[1])[2], band) == 0


def test_run_without_validation_is_drawn(make_run):
    path = make_run("v")
    write_metrics(path, {1: 3.0, 2: 2.5}, {})
    assert panels(path)[0].size


def test_diverged_run_is_drawn(make_run):
    path = make_run("v")
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text.replace('"lm loss": ', '"lm loss": null, "was": '))
    assert panels(path)[0].size

import io

from matplotlib.image import imread

from phd.compare.groups import group_runs
from phd.compare.logs import find_runs
from phd.compare.plot import plot
from tests.compare.conftest import PHD, write_metrics

ORANGE = [255, 127, 14]  # matplotlib's C1


def pixels(*folders):
    """One list for each of the three panels, of [r, g, b]."""
    image = imread(io.BytesIO(plot(group_runs([run for folder in folders for run in find_runs(folder)]))))
    rgb = (image[..., :3] * 255).round().astype(int)
    third = rgb.shape[1] // 3
    return [rgb[:, start : start + third].reshape(-1, 3).tolist() for start in (0, third, 2 * third)]


def test_each_group_is_drawn_in_its_colour(make_run):
    panels = pixels(make_run("v"), make_run("p", shift=-0.5, **PHD))
    for panel in panels:
        for color in ([31, 119, 180], ORANGE):
            assert panel.count(color) > 50
        assert panel.count([44, 160, 44]) == 0  # C2: no third group


def test_several_pairs_have_a_band(make_run):
    runs = [
        make_run(f"{name}{seed}", shift=shift * seed, seed=seed, **about)
        for seed in (1, 2)
        for name, shift, about in (("v", 0.0, {}), ("p", -0.5, PHD))
    ]
    band = [255, 229, 206]  # a fifth of orange on white
    assert pixels(*runs)[2].count(band) > 10_000
    assert pixels(runs[0], runs[1])[2].count(band) == 0


def test_run_without_validation_is_drawn(make_run):
    path = make_run("v")
    write_metrics(path, {1: 3.0, 2: 2.5}, {})
    assert pixels(path)[0]


def test_diverged_run_is_drawn(make_run):
    path = make_run("v")
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text.replace('"lm loss": ', '"lm loss": null, "was": '))
    assert pixels(path)[0]

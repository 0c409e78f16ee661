import io

import pytest
from rich.console import Console

from phd.compare.logs import find_runs
from phd.compare.report import group_runs, print_table, summarize, write_atomically

PHD = {"name": "PHD-CSWA-2-16-32", "flops_per_token": 12000.0}


def read(*folders):
    return [run for folder in folders for run in find_runs(folder)]


def test_seeds_are_grouped_and_paired(make_run):
    runs = read(
        make_run("v2", shift=0.5, seed=2),
        make_run("v1", seed=1),
        make_run("p1", shift=-0.25, seed=1, **PHD),
        make_run("p2", shift=-0.5, seed=2, **PHD),
        make_run("p3", shift=-1.0, seed=3, **PHD),
    )
    records = summarize(group_runs(runs))
    assert [(record["label"], record["seed"]) for record in records] == [
        ("vanilla", 1),
        ("vanilla", 2),
        ("vanilla", "mean"),
        (PHD["name"], 1),
        (PHD["name"], 2),
        (PHD["name"], 3),
        (PHD["name"], "mean"),
    ]
    assert [record["difference"] for record in records[:3]] == [None] * 3
    assert [record["difference"] for record in records[3:5]] == pytest.approx([-0.25, -1.0])
    # Seed 3 has no partner, and a mean over fewer pairs would pass for one over all.
    assert records[5]["difference"] is None
    assert records[6]["difference"] is None
    assert records[2]["validation_loss"] == pytest.approx(3.5)
    assert records[3]["training_flops"] == 2 * records[0]["training_flops"]


def test_mean_of_paired_differences(make_run):
    runs = read(
        make_run("v1", seed=1),
        make_run("v2", shift=1.0, seed=2),
        make_run("p1", shift=-0.25, seed=1, **PHD),
        make_run("p2", shift=0.5, seed=2, **PHD),
    )
    assert summarize(group_runs(runs))[-1]["difference"] == pytest.approx((-0.25 - 0.5) / 2)


def test_longer_baseline_is_a_group_of_its_own(make_run):
    runs = read(make_run("v"), make_run("long", train_iters=40), make_run("p", **PHD))
    assert [group.label for group in group_runs(runs)] == [
        "vanilla, 20 iterations",
        "vanilla, 40 iterations",
        PHD["name"],
    ]


@pytest.mark.parametrize(
    ("key", "flag"), [("seq_length", "--seq-length"), ("global_batch_size", "--global-batch-size")]
)
def test_other_batches_are_refused(make_run, key, flag):
    runs = read(make_run("v"), make_run("p", **PHD, **{key: 16}))
    with pytest.raises(ValueError, match=f"{flag} . and .*p with 16; compare runs on the same batches"):
        group_runs(runs)


def test_same_run_twice_is_refused(make_run):
    runs = read(make_run("a"), make_run("b"))
    with pytest.raises(ValueError, match="both vanilla with --seed 1234 and --train-iters 20"):
        group_runs(runs)


def test_table_shows_each_number(make_run):
    runs = read(make_run("v"), make_run("p", shift=-0.25, **PHD))
    text = io.StringIO()
    print_table(summarize(group_runs(runs)), Console(file=text, width=140))
    (row,) = [line for line in text.getvalue().splitlines() if PHD["name"] in line]
    # Final training loss: mean of 3.1 and 3.0, less the shift; 160 tokens at 12000 FLOPs each.
    for cell in ("1234", "160", "2.8000", "3.0000", "-0.2500", "1.92e+06", "16"):
        assert f" {cell} " in row


def test_atomic_write_replaces(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]

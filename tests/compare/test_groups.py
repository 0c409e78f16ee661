import pytest

from phd.compare.arguments import refuse_differences
from phd.compare.groups import difference_curves, final_differences, group_runs
from phd.compare.logs import find_runs
from tests.compare.conftest import PHD


def read(*folders):
    return [run for folder in folders for run in find_runs(folder)]


def labels(runs, *arguments):
    return [group.label for group in group_runs(runs, *arguments)]


def test_seeds_are_grouped_in_order(make_run):
    runs = read(make_run("v2", seed=2), make_run("p1", seed=1, **PHD), make_run("v1", seed=1))
    groups = group_runs(runs)
    assert [(group.label, [run.seed for run in group.runs]) for group in groups] == [
        ("vanilla", [1, 2]),
        (PHD["name"], [1]),
    ]


def test_varied_flag_makes_groups(make_run):
    runs = read(make_run("v"), make_run("long", train_iters=40), make_run("p", **PHD))
    expected = ["vanilla, train-iters 20", "vanilla, train-iters 40", f"{PHD['name']}, train-iters 20"]
    assert labels(runs, ["train_iters"]) == expected


def test_varied_flag_that_does_not_differ_is_not_named(make_run):
    assert labels(read(make_run("v"), make_run("p", **PHD)), ["lr"]) == ["vanilla", PHD["name"]]


def test_varied_list(make_run):
    runs = read(make_run("a", arguments={"data_path": ["a"]}), make_run("b", arguments={"data_path": ["b"]}))
    assert labels(runs, ["data_path"]) == ["vanilla, data-path ['a']", "vanilla, data-path ['b']"]


def test_old_runs_of_other_length_are_groups(make_run):
    runs = read(make_run("v", arguments=None), make_run("long", arguments=None, train_iters=40))
    assert labels(runs) == ["vanilla, train-iters 20", "vanilla, train-iters 40"]


def test_backends_of_a_variant_are_groups(make_run):
    backends = [
        make_run(name, arguments={"phd_attention_backend": name}, **PHD) for name in ("flash", "reference")
    ]
    vanilla = [
        make_run(f"v-{name}", seed=seed, arguments={"phd_attention_backend": name})
        for seed, name in enumerate(("flash", "reference"))
    ]
    assert labels(read(*vanilla, *backends)) == [
        "vanilla",
        "PHD-CSWA-2-16-32, phd-attention-backend flash",
        "PHD-CSWA-2-16-32, phd-attention-backend reference",
    ]


def test_auto_was_flash(make_run):
    runs = [
        make_run(name, seed=seed, arguments={"phd_attention_backend": name}, **PHD)
        for seed, name in enumerate(("auto", "flash"))
    ]
    assert labels(read(*runs)) == [PHD["name"]]


def test_numbers_behind_a_pattern_are_groups(make_run):
    """Of runs whose names were silent on them; a run of full layers has no use for them."""
    numbers = {"phd_copies": 1} | {"attention_pattern": "longgen-sink", "attention_pattern_local_blocks": 32}
    few = numbers | {"attention_pattern_local_blocks": 4}
    runs = read(
        make_run("v"),
        make_run("v2", seed=2, arguments=few | {"attention_pattern": "full"}),
        make_run("h", name="longgen-sink", arguments=numbers),
        make_run("h2", name="longgen-sink", arguments=few),
    )
    assert labels(runs) == [
        "vanilla",
        "longgen-sink",
        "longgen-sink.64.1.4",
    ]


def test_which_heads_are_full_makes_groups(make_run):
    """Whatever file they were read from."""
    names = ["heads.1full.3sink.4.1.2", "heads.1full.3sink.4.1.2", "heads.2full.2sink.4.1.2"]
    paths = []
    for number, name in enumerate(names):
        asked = {"full_heads": f"/gates/{number}.json", "full_heads_share": [None, 0.25, 0.5][number]}
        arguments = {"phd_copies": 1, "attention_pattern": name, **asked}
        paths.append(make_run(str(number), name=name, seed=number, arguments=arguments))
    runs = read(*paths)
    refuse_differences(runs)
    groups = group_runs(runs)
    assert [(group.label, len(group.runs)) for group in groups] == [(names[0], 2), (names[2], 1)]


def test_vanilla_is_the_baseline_wherever_it_stands(make_run):
    """In a folder "PHD" comes before "vanilla"."""
    assert labels(read(make_run("p", **PHD), make_run("v"))) == ["vanilla", PHD["name"]]
    naive = {"name": "naive-2", "copies": 2}
    assert labels(read(make_run("a", **PHD), make_run("n", **naive))) == [PHD["name"], "naive-2"]


@pytest.mark.parametrize("name", ["PHD-CSWA-2-16-32", "PHD-CSWA-2-16-32, train-iters 20"])
def test_baseline_by_name_or_label(make_run, name):
    runs = read(make_run("v"), make_run("long", train_iters=40), make_run("p", **PHD))
    assert labels(runs, ["train_iters"], name) == [
        "PHD-CSWA-2-16-32, train-iters 20",
        "vanilla, train-iters 20",
        "vanilla, train-iters 40",
    ]


@pytest.mark.parametrize(("name", "found"), [("vanilla", 2), ("nonsense", 0)])
def test_baseline_that_is_not_one_group(make_run, name, found):
    runs = read(make_run("v"), make_run("long", train_iters=40))
    with pytest.raises(ValueError, match=f"--baseline {name} names {found} .*'vanilla, train-iters 40'"):
        group_runs(runs, ["train_iters"], name)


def test_same_run_twice_is_refused(make_run):
    with pytest.raises(ValueError, match="both vanilla with --seed 1234 and --train-iters 20"):
        group_runs(read(make_run("a"), make_run("b")))


def test_differences_are_paired_by_seed(make_run):
    baseline, group = group_runs(
        read(
            make_run("v1", seed=1),
            make_run("v2", shift=0.5, seed=2),
            make_run("p1", shift=-0.25, seed=1, **PHD),
            make_run("p2", shift=-0.5, seed=2, **PHD),
            make_run("p3", shift=-1.0, seed=3, **PHD),
        )
    )
    for of in ("train", "validation"):
        assert final_differences(group, baseline, of) == pytest.approx({1: -0.25, 2: -1.0})
    curves = difference_curves(group, baseline)
    assert list(curves) == [1, 2]
    assert curves[2] == pytest.approx({40: -1.0, 80: -1.0, 120: -1.0, 160: -1.0})


@pytest.mark.parametrize(
    ("iterations", "train", "validation"), [(19, False, False), (12, False, False), (20, True, True)]
)
def test_only_equally_many_tokens_are_compared(make_run, iterations, train, validation):
    baseline, group = group_runs(read(make_run("v"), make_run("p", iterations=iterations, **PHD)))
    assert bool(final_differences(group, baseline, "train")) == train
    assert bool(final_differences(group, baseline)) == validation
    assert len(difference_curves(group, baseline)[1234]) == iterations // 5


def test_means_are_over_the_runs_that_came_furthest(make_run):
    (group,) = group_runs(
        read(
            make_run("a", seed=1),
            make_run("b", shift=1.0, seed=2),
            make_run("c", shift=9.0, seed=3, iterations=12),
        )
    )
    assert [run.seed for run in group.trained] == [run.seed for run in group.validated] == [1, 2]
    assert group.mean_validation == pytest.approx({40: 5.25, 80: 4.75, 120: 4.25, 160: 3.75})


def test_group_without_validation(make_run):
    (group,) = group_runs(read(make_run("a", iterations=3)))
    assert group.validated == () and group.mean_validation == {}

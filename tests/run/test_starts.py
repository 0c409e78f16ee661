"""phd_run.json keeps the arguments of every start."""

import pytest

from phd.run.starts import arguments_by_iteration, with_start


def about(**arguments):
    return {"name": "vanilla", "arguments": arguments}


def history(*starts):
    """phd_run.json after starts that went on from these iterations with these arguments."""
    file: dict = {}
    for iteration, arguments in starts:
        file = with_start(about(**arguments), file, iteration)
    return arguments_by_iteration(file)


def test_every_start_keeps_its_arguments():
    starts = [
        (0, {"data_path": ["a"], "lr": 1.0, "old": 1}),
        (3, {"data_path": ["b"], "lr": 1.0}),
        (6, {"data_path": ["a"], "lr": 2.0, "new": 1}),
    ]
    found = history(*starts)
    assert [iteration for iteration, _ in found] == [0, 3, 6]
    assert found[0][1] == {"data_path": ["a"], "lr": 1.0, "old": 1, "new": "absent"}
    assert found[1][1] == {"data_path": ["b"], "lr": 1.0, "new": "absent"}
    assert found[2][1] == starts[2][1]


def test_a_start_takes_the_place_of_those_whose_iterations_it_repeats():
    """As the record is cut: one that died without a checkpoint has trained nothing that is left."""
    assert history((0, {"lr": 1}), (4, {"lr": 2}), (4, {"lr": 3})) == [(0, {"lr": 1}), (4, {"lr": 3})]
    assert history((0, {"lr": 1}), (4, {"lr": 2}), (8, {"lr": 3}), (2, {"lr": 4})) == [
        (0, {"lr": 1}),
        (2, {"lr": 4}),
    ]
    assert history((0, {"lr": 1}), (4, {"lr": 2}), (0, {"lr": 3})) == [(0, {"lr": 3})]


def test_a_run_that_older_code_recorded():
    """It has one start; and the next start keeps its arguments."""
    assert arguments_by_iteration(about(lr=1)) == [(0, {"lr": 1})]
    assert arguments_by_iteration({"name": "vanilla"}) == []
    assert arguments_by_iteration(with_start(about(lr=2), about(lr=1), 5)) == [(0, {"lr": 1}), (5, {"lr": 2})]
    assert arguments_by_iteration(with_start(about(lr=2), {"name": "vanilla"}, 5)) == [(5, {"lr": 2})]


@pytest.mark.parametrize("starts", [[{"differs": {}}], [{"iteration": 0}], [3], {"a": 1}])
def test_what_no_run_writes(starts):
    with pytest.raises((ValueError, TypeError, KeyError)):
        arguments_by_iteration(about(lr=1) | {"starts": starts})

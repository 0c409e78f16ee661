import math

import pytest

from phd.compare.curves import difference_range, first_reach, loss_range, mean_curve, smooth, thin, value_at
from phd.compare.logs import read_run

CURVE = {100: 4.0, 200: 3.0, 300: 3.5, 400: 1.5}


@pytest.mark.parametrize(
    ("target", "tokens"),
    [(3.5, 150.0), (3.0, 200.0), (2.5, 350.0), (1.5, 400.0), (4.0, 100.0), (5.0, 100.0), (1.4, None)],
)
def test_first_reach(target, tokens):
    assert first_reach(CURVE, target) == (tokens if tokens is None else pytest.approx(tokens))


def test_first_reach_after_a_gap():
    assert first_reach({10: math.nan, 20: 1.0}, 2.0) == 20
    assert first_reach({}, 2.0) is None


def test_value_between_points_and_from_the_origin():
    flops = {100: 1000.0, 200: 3000.0}
    assert [value_at(flops, tokens) for tokens in (50, 100, 150, 200)] == [500.0, 1000.0, 2000.0, 3000.0]
    with pytest.raises(ValueError, match="ends before 201 tokens"):
        value_at(flops, 201)


def test_mean_where_all_have_a_point():
    assert mean_curve([{10: 1.0, 20: 2.0}, {20: 4.0, 30: 5.0}]) == {20: 3.0}
    assert mean_curve([]) == {}


def test_thin_keeps_the_mean_and_the_end():
    curve = {tokens: float(tokens) for tokens in range(1, 11)}
    assert thin(curve, 10) is curve
    assert thin(curve, 4) == {3: 2.0, 6: 5.0, 9: 8.0, 10: 10.0}


def test_ranges_leave_out_the_start(make_run):
    run = read_run(make_run("v") / "phd_run.json")
    limits = loss_range([run])
    assert limits is not None
    assert 2.9 < limits[0] < 3.0 and 4.75 < limits[1] < 4.9  # 4.9 is the first training loss
    limits = difference_range([{10: -9.0, 100: -1.0}])
    assert limits is not None and -1.5 < limits[0] < -1.0 and 0 < limits[1] < 0.5


def test_range_of_nothing():
    assert loss_range([]) is None
    assert difference_range([]) is None
    assert difference_range([{}]) is None


def test_smooth_has_no_bias_and_steps_over_nan():
    assert smooth({1: 2.0, 2: 2.0, 3: 2.0}, 0.9) == pytest.approx({1: 2.0, 2: 2.0, 3: 2.0})
    # Weights 0.25 and 0.5 over their sum.
    found = smooth({1: 1.0, 2: math.nan, 3: 4.0}, 0.5)
    assert found[1] == 1.0 and math.isnan(found[2]) and found[3] == pytest.approx(3.0)
    assert smooth({1: 1.0, 2: 5.0}, 0.0) == {1: 1.0, 2: 5.0}

import math

import numpy as np
import pytest
from scipy import stats

from phd.compare.statistics import band, holm, mean_interval, paired_difference, pairs_needed, power

DIFFERENCES = [-0.031, -0.012, -0.025, -0.04]


def test_interval_is_student_s():
    # By hand: mean 2, standard deviation 1, t(0.975, 2) = 4.302653.
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None and found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - found.half_width)


def test_the_confidence_is_asked_for():
    # t(0.995, 2) = 9.924843
    found = mean_interval([1.0, 2.0, 3.0], 0.99)
    assert found is not None and found.half_width == pytest.approx(9.924843 / math.sqrt(3), rel=1e-6)
    difference = paired_difference([1.0, 2.0, 3.0], 0.99)
    assert difference is not None and difference.half_width == pytest.approx(found.half_width)


def test_one_seed_has_no_interval():
    found = mean_interval([1.5])
    assert found is not None
    assert (found.mean, found.low, found.high, found.half_width, found.n) == (1.5, None, None, None, 1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_mean_of_nothing_or_of_a_diverged_run(values):
    assert mean_interval(values) is None
    assert paired_difference(values) is None


def test_paired_difference_is_scipy_s_t_test():
    found = paired_difference(DIFFERENCES)
    expected = stats.ttest_1samp(DIFFERENCES, 0.0)
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.standard_deviation == pytest.approx(np.std(DIFFERENCES, ddof=1))
    assert found.n == 4


def test_one_pair_has_a_difference_alone():
    found = paired_difference([-0.5])
    assert found is not None
    assert (found.mean, found.n) == (-0.5, 1)
    assert found.low is found.p is found.standard_deviation is found.pairs_needed is None


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, none below the one before it and none above 1
    assert holm([0.5, 0.03, 0.01, 0.02]) == pytest.approx([0.5, 0.06, 0.04, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.7, 0.9]) == [1, 1]
    assert holm([0.03]) == [0.03] and holm([]) == []


@pytest.mark.parametrize(("values", "p", "needed"), [([0.5, 0.5], 0.0, 2), ([0.0, 0.0], 1.0, None)])
def test_differences_without_spread(values, p, needed):
    found = paired_difference(values)
    assert found is not None and (found.p, found.pairs_needed) == (p, needed)


# The usual table of the two-sided paired t-test, power 80%, alpha 5%; first Cohen's small, medium and large.
@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_pairs_needed(effect, pairs):
    assert pairs_needed(effect, 1.0) == pairs_needed(-3 * effect, 3.0) == pairs


def test_pairs_needed_at_the_ends():
    assert pairs_needed(0.0, 1.0) is None
    assert pairs_needed(100.0, 1.0) == pairs_needed(1.0, 0.0) == 2
    # There the t-test is the normal one: (1.959964 + 0.841621)^2 / 0.01^2.
    assert pairs_needed(0.01, 1.0) == pytest.approx(78_489, abs=2)


def test_power_is_never_undefined_and_grows():
    for pairs in (2, 3, 10, 1000):
        powers = [power(effect, pairs) for effect in np.geomspace(0.001, 50, 200)]
        assert np.isfinite(powers).all()
        assert (np.diff(powers) > -1e-9).all()


@pytest.mark.parametrize("effect", [0.5, 1.5, 4.0])
def test_power_by_simulation(effect):
    pairs = pairs_needed(effect, 1.0)
    assert pairs is not None
    samples = np.random.default_rng(0).normal(effect, 1.0, (20_000, pairs))
    found = (stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05).mean()
    # Three standard errors of a share of 80% among 20,000.
    assert found == pytest.approx(power(effect, pairs), abs=3 * math.sqrt(0.16 / 20_000))
    assert power(effect, pairs) >= 0.8
    assert pairs == 2 or power(effect, pairs - 1) < 0.8


def test_band_is_where_all_curves_are():
    found = band([{10: 1.0, 20: 2.0, 30: 9.0}, {10: 3.0, 20: 2.0}])
    assert {tokens: point.mean for tokens, point in found.items()} == {10: 2.0, 20: 2.0}
    assert found[20].half_width == 0.0
    assert band([]) == {}
    assert list(band([{10: math.nan, 20: 1.0}])) == [20]

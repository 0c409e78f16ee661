"""What a few seeds can say: t-intervals, the paired t-test, Holm's method, how many pairs an effect needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import special  # scipy.stats has the same functions, and takes seconds to import

from phd.compare.logs import Curve

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds with its t-confidence interval; the bounds are None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True, kw_only=True)
class PairedDifference(Mean):
    """A mean of differences paired by seed; what needs two pairs is None for one."""

    p: float | None
    """Two-sided paired t-test against no difference."""
    standard_deviation: float | None
    """Of the paired differences."""
    pairs_needed: int | None
    """Pairs for a power of 80% at p < 0.05, if the effect and its deviation are as measured."""


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Mean | None:
    """The mean of one value per seed; None where there is none, or one that is not finite."""
    if not values or not all(map(math.isfinite, values)):
        return None
    mean, n = fmean(values), len(values)
    if n == 1:
        return Mean(mean=mean, low=None, high=None, n=1)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * stdev(values) / math.sqrt(n)
    return Mean(mean=mean, low=mean - half, high=mean + half, n=n)


def paired_difference(
    differences: Sequence[float], confidence: float = CONFIDENCE
) -> PairedDifference | None:
    """The statistics of one difference per seed; None where there is none, or one that is not finite."""
    interval = mean_interval(differences, confidence)
    if interval is None:
        return None
    p = deviation = needed = None
    if interval.n > 1:
        deviation = stdev(differences)
        p = _p_value(interval.mean, deviation, interval.n)
        needed = pairs_needed(interval.mean, deviation)
    return PairedDifference(
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        p=p,
        standard_deviation=deviation,
        pairs_needed=needed,
    )


def _p_value(mean: float, deviation: float, n: int) -> float:
    if deviation == 0:
        return 0.0 if mean else 1.0
    return float(2 * special.stdtr(n - 1, -abs(mean) / deviation * math.sqrt(n)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value adjusted for all of them by Holm's method: whoever rejects those of at most alpha rejects
    a true hypothesis with a chance of at most alpha, however the tests depend on each other.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def power(effect: float, pairs: int) -> float:
    """The chance that a two-sided paired t-test finds p < 0.05.

    Args:
        effect: mean of the differences over their standard deviation.
        pairs: at least 2.
    """
    shift = abs(effect) * math.sqrt(pairs)
    critical = float(special.stdtrit(pairs - 1, 1 - SIGNIFICANCE / 2))
    found = 1 - float(special.nctdtr(pairs - 1, shift, critical))
    # The wrong sign is as good as impossible from there on, and scipy may answer nan.
    return found if shift > 3 else found + float(special.nctdtr(pairs - 1, shift, -critical))


def pairs_needed(mean: float, deviation: float) -> int | None:
    """The smallest number of pairs, at least 2, that gives ``power`` of 80%; None for no effect at all."""
    if mean == 0:
        return None
    effect = abs(mean) / deviation if deviation else math.inf
    if effect > 20:  # two pairs are enough from 11.6 on
        return 2
    # The normal approximation is always a little below.
    quantiles = float(special.ndtri(1 - SIGNIFICANCE / 2) + special.ndtri(POWER))
    pairs = max(2, math.ceil((quantiles / effect) ** 2))
    # Beyond some thousands it is exact to a pair or two, and the noncentral t is slow and loses digits.
    while pairs < 5000 and power(effect, pairs) < POWER:
        pairs += 1
    return pairs


def band(curves: Sequence[Curve]) -> dict[int, Mean]:
    """Mean and interval over ``curves``, one of each seed, by tokens, where all of them have a point."""
    points = {
        tokens: mean_interval([curve[tokens] for curve in curves])
        for tokens in (curves[0] if curves else {})
        if all(tokens in curve for curve in curves)
    }
    return {tokens: point for tokens, point in points.items() if point is not None}

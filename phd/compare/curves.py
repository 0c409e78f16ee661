"""Arithmetic on curves: means, where one reaches a loss, fewer points, and what part of them to show."""

import math
from collections.abc import Iterable, Sequence
from itertools import batched, pairwise
from statistics import fmean

from phd.compare.logs import Curve, RunLog


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean at the points that all have."""
    if not curves:
        return {}
    common = [tokens for tokens in curves[0] if all(tokens in curve for curve in curves)]
    return {tokens: fmean(curve[tokens] for curve in curves) for tokens in common}


def first_reach(curve: Curve, target: float) -> float | None:
    """Tokens at which ``curve`` is first at or below ``target``, linear between its points; None if never.

    A curve that starts there reached it at its first point at the latest, which is what is returned.
    """
    points = list(curve.items())
    if points and points[0][1] <= target:
        return float(points[0][0])
    for (tokens, loss), (next_tokens, next_loss) in pairwise(points):
        if next_loss <= target:
            if not math.isfinite(loss):
                return float(next_tokens)
            return tokens + (loss - target) / (loss - next_loss) * (next_tokens - tokens)
    return None


def value_at(curve: Curve, tokens: float) -> float:
    """``curve`` at ``tokens``, linear between its points and from the origin to the first one.

    Raises:
        ValueError: ``tokens`` is beyond the last point.
    """
    for (left, low), (right, high) in pairwise([(0, 0.0), *curve.items()]):
        if tokens <= right:
            return low + (high - low) * (tokens - left) / (right - left)
    raise ValueError(f"the curve ends before {tokens:,.0f} tokens")


def thin(curve: Curve, points: int) -> Curve:
    """At most ``points`` points, each the mean of as many neighbours at the tokens of the last of them."""
    if len(curve) <= points:
        return curve
    pieces = batched(curve.items(), math.ceil(len(curve) / points))
    return {piece[-1][0]: fmean(value for _, value in piece) for piece in pieces}


def smooth(curve: Curve, weight: float) -> Curve:
    """The exponential moving average, without the bias to zero of its beginning; nan is stepped over.

    Args:
        weight: of what was before, at least 0 and below 1.
    """
    smoothed: Curve = {}
    total = norm = 0.0
    for tokens, value in curve.items():
        if math.isfinite(value):
            total = weight * total + (1 - weight) * value
            norm = weight * norm + (1 - weight)
            smoothed[tokens] = total / norm
        else:
            smoothed[tokens] = math.nan
    return smoothed


def curve_range(curves: Iterable[Curve]) -> tuple[float, float] | None:
    """Limits for a plot of curves that fall; None without any."""
    return _late_range(list(curves), 0.03)


def loss_range(runs: Iterable[RunLog]) -> tuple[float, float] | None:
    """Limits for a plot of all losses; None without any."""
    return curve_range(curve for run in runs for curve in (run.train_loss, run.validation_loss))


def difference_range(curves: Iterable[Curve]) -> tuple[float, float] | None:
    """Limits for a plot of differences that has zero in it; None without any."""
    # The margin leaves room for the bands.
    curves = list(curves)
    return _late_range([*curves, {1: 0.0}], 0.25) if any(curves) else None


def _late_range(curves: Sequence[Curve], margin: float) -> tuple[float, float] | None:
    """Limits that leave out the first fifth of training, whose steep fall would flatten all the rest."""
    late = []
    for curve in curves:
        start = 0.2 * max(curve, default=0)
        late += [value for tokens, value in curve.items() if tokens >= start and math.isfinite(value)]
    if not late:
        return None
    room = margin * (max(late) - min(late)) + 1e-4
    return min(late) - room, max(late) + room

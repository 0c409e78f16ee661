"""The picture of a comparison: loss against tokens and FLOPs, and the difference to the baseline."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phd.compare.curves import difference_range, loss_range
from phd.compare.groups import Group, difference_curves
from phd.compare.logs import RunLog
from phd.compare.statistics import USUAL, Criterion, band


def plot(groups: Sequence[Group], criterion: Criterion = USUAL) -> bytes:
    """A PNG with three panels; the first of ``groups`` is the baseline.

    Losses (training faint, validation as points) against tokens and against FLOPs, and the validation loss
    less the baseline's, paired by seed: a thin line each, and of several pairs the mean with the band of its
    intervals.
    """
    figure = Figure(figsize=(17, 4.8), layout="constrained")
    by_tokens, by_flops, difference = figure.subplots(1, 3)
    by_flops.sharey(by_tokens)
    for number, group in enumerate(groups):
        color = f"C{number}"
        for run in group.runs:
            label = group.label if run is group.runs[0] else None
            _draw_losses(by_tokens, run, {tokens: tokens for tokens in run.flops}, color, label)
            _draw_losses(by_flops, run, run.flops, color, None)
        if group is not groups[0]:
            _draw_difference(difference, group, groups[0], color, criterion)
    by_tokens.set(xlabel="original tokens seen", ylabel="loss (nats per token)")
    by_flops.set(xlabel="training FLOPs")
    difference.set(xlabel="original tokens seen", ylabel=f"validation loss less that of {groups[0].label}")
    difference.axhline(0, color="C0", linewidth=1)
    if limits := loss_range(run for group in groups for run in group.runs):
        by_tokens.set_ylim(limits)
    differences = (difference_curves(group, groups[0]).values() for group in groups[1:])
    if limits := difference_range(curve for curves in differences for curve in curves):
        difference.set_ylim(limits)
    by_tokens.legend()
    for axes in (by_tokens, by_flops, difference):
        axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def _draw_losses(
    axes: Axes, run: RunLog, scale: dict[int, int] | dict[int, float], color: str, label: str | None
) -> None:
    """``scale``: where the points lie, by tokens; ``label``: what the legend says, None for nothing."""
    axes.plot(
        [scale[tokens] for tokens in run.train_loss],
        list(run.train_loss.values()),
        color=color,
        alpha=0.25,
        linewidth=0.8,
        label=None if run.validation_loss else label,
    )
    if run.validation_loss:
        axes.plot(
            [scale[tokens] for tokens in run.validation_loss],
            list(run.validation_loss.values()),
            color=color,
            marker="o",
            markersize=3,
            zorder=3,
            label=label,
        )


def _draw_difference(axes: Axes, group: Group, baseline: Group, color: str, criterion: Criterion) -> None:
    curves = list(difference_curves(group, baseline).values())
    several = len(curves) > 1
    for curve in curves:
        style = {"alpha": 0.6} if several else {"marker": "o", "markersize": 3}
        axes.plot(list(curve), list(curve.values()), color=color, linewidth=0.8, **style)
    points = band(curves, criterion)
    if several and points:
        low, high = ([getattr(point, end) for point in points.values()] for end in ("low", "high"))
        mean = [point.mean for point in points.values()]
        axes.fill_between(list(points), low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(list(points), mean, color=color, marker="o", markersize=3)

"""What plotly.js draws in each panel of the page, as the plain objects that it takes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from phd.compare.curves import curve_range, difference_range, smooth, thin
from phd.compare.groups import Group, difference_curves
from phd.compare.logs import Curve, RunLog
from phd.compare.panels import AXES, COLORS, Panel
from phd.compare.statistics import USUAL, Criterion, band

POINTS = 1000
"""Largest number of points of a curve, each a mean over neighbours: a panel has no more pixels."""

type Trace = dict[str, Any]


def figures(
    panels: Iterable[Panel], groups: Sequence[Group], criterion: Criterion = USUAL
) -> list[tuple[Panel, dict[str, Any]]]:
    """Data and layout for plotly, for each panel of curves that has data.

    Every trace names its group's number in ``meta``.
    """
    kinds = ("lines", "difference")
    found = [(panel, _figure(panel, groups, criterion)) for panel in panels if panel.kind in kinds]
    return [(panel, figure) for panel, figure in found if figure is not None]


def color(number: int) -> str:
    """The color of the group with this number."""
    return COLORS[number % len(COLORS)]


def _figure(panel: Panel, groups: Sequence[Group], criterion: Criterion) -> dict[str, Any] | None:
    axis: dict[str, Any] = {"title": {"text": panel.unit}}
    if panel.kind == "difference":
        differences = [difference_curves(group, groups[0]) for group in groups]
        curves = [curve for group in differences[1:] for curve in group.values()]
        if not any(curves):
            return None
        data = [
            trace
            for number, group in enumerate(groups[1:], start=1)
            for trace in _differences(group, differences[number], number, criterion)
        ]
        axis["range"] = difference_range(curves)
        axis["zeroline"] = True
    else:
        runs = [run for group in groups for run in group.runs]
        if not all(any(name in run.metrics for run in runs) for name in panel.y):
            return None
        data = [
            trace
            for number, group in enumerate(groups)
            for run in group.runs
            for trace in _lines(panel, group, run, number)
        ]
        if panel.late:
            axis["range"] = curve_range(run.metrics.get(name, {}) for run in runs for name in panel.y)
    if panel.log:
        axis["type"] = "log"
    if panel.zero:
        axis["rangemode"] = "tozero"
    # 1.5B tokens and 600k a second, but 3e-4.
    axis["exponentformat"] = "B" if panel.zero and panel.unit else "e"
    across = {"title": {"text": AXES[panel.x].title}, "exponentformat": "e" if panel.x == "flops" else "B"}
    # What is faint lies behind the lines of all groups.
    data.sort(key=lambda trace: trace["opacity"] == 1)
    return {"data": data, "layout": {"xaxis": across, "yaxis": axis}}


def _lines(panel: Panel, group: Group, run: RunLog, number: int) -> list[Trace]:
    places = {"tokens": None, "flops": run.flops, "hours": _hours(run)}[panel.x]
    traces = []
    for position, name in enumerate(panel.y):
        curve = run.metrics.get(name, {})
        if not curve:
            continue
        about = f"{group.label}, seed {run.seed}" + (", original copy" if position else "")
        style: dict[str, Any] = {"dash": "dot"} if position else {}
        few = len(curve) <= 50
        if panel.smoothing and not few:
            smoothed = smooth(curve, panel.smoothing)
            traces.append(_trace(thin(curve, POINTS), places, number, about, opacity=0.25, hover=False))
            traces.append(_trace(thin(smoothed, POINTS), places, number, f"{about}, smoothed"))
        else:
            traces.append(_trace(thin(curve, POINTS), places, number, about, points=few, **style))
    return traces


def _hours(run: RunLog) -> Curve:
    return {tokens: seconds / 3600 for tokens, seconds in run.seconds.items()}


def _differences(group: Group, curves: Mapping[int, Curve], number: int, criterion: Criterion) -> list[Trace]:
    """A line for each pair, and of several the mean with the band of its intervals."""
    traces = []
    points = band(list(curves.values()), criterion)
    several = len(curves) > 1 and bool(points)
    if several:
        tokens = list(points)
        ends = [point.low for point in points.values()], [point.high for point in points.values()]
        area = {"fill": "toself", "fillcolor": color(number), "line": {"width": 0}, "mode": "lines"}
        place = {"x": tokens + tokens[::-1], "y": ends[0] + ends[1][::-1]}
        traces.append(
            {"type": "scatter", **place, **area, "opacity": 0.2, "hoverinfo": "skip", "meta": number}
        )
        mean = {tokens: point.mean for tokens, point in points.items()}
        about = f"{group.label}, mean of {len(curves)} pairs"
        traces.append(_trace(mean, None, number, about, points=True))
    for seed, curve in curves.items():
        about = f"{group.label}, seed {seed}"
        traces.append(_trace(curve, None, number, about, points=not several, opacity=0.4 if several else 1.0))
    return traces


def _trace(
    curve: Curve,
    places: Mapping[int, float] | None,
    number: int,
    about: str,
    *,
    points: bool = False,
    opacity: float = 1.0,
    hover: bool = True,
    dash: str = "solid",
) -> Trace:
    """``places``: where the points lie by tokens, None for at their tokens; ``about``: what is pointed at."""
    line = {"color": color(number), "width": 1 if opacity < 1 else 2, "dash": dash}
    shown = [tokens for tokens in curve if places is None or tokens in places]
    return {
        "type": "scatter",
        "x": shown if places is None else [places[tokens] for tokens in shown],
        "y": [curve[tokens] if math.isfinite(curve[tokens]) else None for tokens in shown],
        "mode": "lines+markers" if points else "lines",
        "line": line,
        "marker": {"size": 5},
        "opacity": opacity,
        # Plotly reads names as HTML.
        "name": escape(about),
        "hoverinfo": "all" if hover else "skip",
        "hoverlabel": {"namelength": -1},
        "meta": number,
    }

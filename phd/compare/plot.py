"""The picture of a comparison: loss against tokens seen, and against training FLOPs."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from phd.compare.report import Group, write_atomically


def plot(groups: Sequence[Group], path: Path) -> None:
    """Write a PNG with two panels: training loss as a faint line, validation loss as points on a line."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    by_tokens, by_flops = figure.subplots(1, 2, sharey=True)
    for number, group in enumerate(groups):
        color = f"C{number}"
        for run in group.runs:
            label = group.label if run is group.runs[0] else None
            for axes, scale in ((by_tokens, 1.0), (by_flops, run.flops_per_token)):
                axes.plot(
                    [tokens * scale for tokens in run.train_loss],
                    list(run.train_loss.values()),
                    color=color,
                    alpha=0.25,
                    linewidth=0.8,
                    label=None if run.validation_loss else label,
                )
                axes.plot(
                    [tokens * scale for tokens in run.validation_loss],
                    list(run.validation_loss.values()),
                    color=color,
                    marker="o",
                    markersize=3,
                    label=label if run.validation_loss else None,
                )
    by_tokens.set(xlabel="original tokens seen", ylabel="loss (nats per token)", ylim=_loss_range(groups))
    by_flops.set(xlabel="training FLOPs")
    by_tokens.legend()
    for axes in (by_tokens, by_flops):
        axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    write_atomically(path, png.getvalue())


def _loss_range(groups: Sequence[Group]) -> tuple[float, float]:
    """Limits that leave out the first fifth of training, whose steep fall would flatten all the rest."""
    losses = []
    for group in groups:
        for run in group.runs:
            for curve in (run.train_loss, run.validation_loss):
                losses += [loss for tokens, loss in curve.items() if tokens >= 0.2 * run.tokens]
    margin = 0.03 * (max(losses) - min(losses)) + 1e-3
    return min(losses) - margin, max(losses) + margin

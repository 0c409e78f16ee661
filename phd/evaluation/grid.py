"""Accuracies over lengths and depths: the printed table and the heat map."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from rich.table import Table


def grid_table(grids: list[dict[str, Any]]) -> Table:
    """A row for each task and depth, a column for each length."""
    lengths = grids[0]["lengths"]
    table = Table("task", "depth", *map(str, lengths), title="accuracy by length in tokens")
    for grid in grids:
        for depth, row in zip(grid["depths"], grid["accuracy"], strict=True):
            shown = "" if depth is None else f"{depth}%"
            table.add_row(grid["task"], shown, *(f"{value:.2f}" for value in row))
    return table


def heat_map(grid: dict[str, Any], title: str) -> bytes:
    """A PNG of a task's accuracies."""
    size = (2.5 + 0.75 * len(grid["lengths"]), 1.8 + 0.45 * len(grid["depths"]))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    figure.colorbar(draw_grid(axes, grid, title), label="accuracy")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def draw_grid(axes: Axes, grid: dict[str, Any], title: str) -> AxesImage:
    """Depth down and length to the right, colours from 0 to 1."""
    lengths, depths, accuracy = grid["lengths"], grid["depths"], grid["accuracy"]
    image = axes.imshow(accuracy, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth}%" for depth in depths])
    axes.set(xlabel="length in tokens", ylabel="depth of the needle")
    axes.set_title(title, fontsize="medium", wrap=True)
    for y, row in enumerate(accuracy):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize="small")
    return image

"""The report as a table, and every rate in it as a share of what the machine reaches."""

from typing import Any

from rich.table import Table

from benchmarks.gpu.piece import Result

SHARES = {"tflops": ("bf16_tflops", "share_of_matmul"), "gb_per_second": ("gb_per_second", "share_of_copy")}
"""Rate of a measurement -> the rate of the piece "peak" that limits it, and the name of the share."""


def add_shares(pieces: dict[str, Result]) -> None:
    """Beside every rate of the other pieces its share of the peak, once that is measured."""
    peak = pieces.get("peak", {})
    for name, piece in pieces.items():
        if name != "peak":
            _add_shares(piece, peak)


def _add_shares(node: Any, peak: Result) -> None:
    children: list[Any] = list(node.values() if isinstance(node, dict) else node)
    for child in children:
        if isinstance(child, dict | list):
            _add_shares(child, peak)
    if isinstance(node, dict):
        for rate, (limit, share) in SHARES.items():
            if rate in node and limit in peak:
                node[share] = node[rate] / peak[limit]


def targets_table(pieces: dict[str, Result], dry: bool) -> Table:
    """What was aimed at, what came out; a target that was not measured is not in it."""
    table = Table(
        "", "measured", "target", "", title="Targets" + (", which a dry run cannot tell" if dry else "")
    )
    for piece in pieces.values():
        for row in piece.get("targets", []):
            table.add_row(
                row["what"], f"{row['value']:.3f}", row["target"], "reached" if row["reached"] else "MISSED"
            )
    return table

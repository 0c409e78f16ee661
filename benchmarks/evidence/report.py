"""What the kept branches say: benchmarks/evidence.json, its plot, and the table of docs/evidence.md.

python -m benchmarks.evidence.report
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy import stats

from benchmarks.evidence.run import KEPT, ROOT, record_name, validation_loss
from benchmarks.evidence.study import (
    CLAIM,
    CRITERION,
    LONG,
    MOST_ORDERS,
    PHD,
    PRIMARY,
    TRUNKS,
    VANILLA,
    Branches,
    Trunk,
)
from phd.compare.paper import paper_losses
from phd.compare.statistics import PairedDifference, holm, paired_difference
from phd.run.files import write_json, write_text

OUTPUT = ROOT / "benchmarks" / "evidence.json"
PLOT = ROOT / "docs" / "evidence.png"
PAGE = ROOT / "docs" / "evidence.md"
BEGIN, END = "<!-- results: python -m benchmarks.evidence.report -->", "<!-- end of results -->"
LARGEST = max(TRUNKS, key=lambda trunk: trunk.parameters)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """An arm's validation loss less vanilla's of the same trunk, length and order; negative is better."""

    trunk: str
    parameters: int
    share: float
    arm: str
    flops_ratio: float
    """Training FLOPs of the branch, to vanilla's."""
    difference: PairedDifference
    differences: dict[int, float]
    """By order."""
    p_corrected: float | None = None
    """By Holm, over all that is not a primary hypothesis."""

    @property
    def primary(self) -> bool:
        return self.arm == PRIMARY and self.trunk == LARGEST.name and self.share == LONG

    @property
    def verdict(self) -> str:
        """In words, by the rule of the plan."""
        p = self.difference.p if self.primary else self.p_corrected
        if p is None:
            return "one order: undecided"
        if p >= CRITERION.alpha:
            return "undecided"
        better = "better" if self.difference.mean < 0 else "worse"
        return better + (f" by {CLAIM} or more" if abs(self.difference.mean) >= CLAIM else f", below {CLAIM}")


def main() -> None:
    rows = read_rows(KEPT)
    slope = slope_over_sizes(rows)
    content = {
        "command": "python -m benchmarks.evidence.report",
        "criterion": dataclasses.asdict(CRITERION),
        "claim": CLAIM,
        "rows": [dataclasses.asdict(row) | {"verdict": row.verdict} for row in rows],
        "slope": slope,
    }
    write_json(OUTPUT, content)
    if rows:
        draw(rows).savefig(PLOT, dpi=150)
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    write_text(PAGE, f"{before}{BEGIN}\n{table(rows, slope)}\n{END}{rest.partition(END)[2]}")


def read_rows(kept: Path) -> list[Row]:
    """The rows that have an order, corrected; in the order of the study."""
    rows = [
        row
        for trunk in TRUNKS
        for branches in trunk.branches
        if branches.arm != VANILLA and (row := _row(kept, trunk, branches)) is not None
    ]
    tested = [row for row in rows if row.difference.p is not None and not row.primary]
    corrected = dict(
        zip(map(id, tested), holm([float(row.difference.p or 0) for row in tested]), strict=True)
    )
    return [dataclasses.replace(row, p_corrected=corrected.get(id(row))) for row in rows]


def _row(kept: Path, trunk: Trunk, branches: Branches) -> Row | None:
    vanilla_branches = trunk.vanilla(branches.share)
    differences = {}
    for order in range(1, MOST_ORDERS + 1):
        pair = [kept / "runs" / record_name(trunk, each, order) for each in (branches, vanilla_branches)]
        if all(folder.exists() for folder in pair):
            ours, vanilla = map(validation_loss, pair)
            differences[order] = ours - vanilla
    difference = paired_difference(list(differences.values()), CRITERION)
    if difference is None:
        return None
    length = branches.iterations / vanilla_branches.iterations
    return Row(
        trunk=trunk.name,
        parameters=trunk.parameters,
        share=branches.share,
        arm=branches.arm,
        flops_ratio=length * trunk.flops_ratio(branches.variant),
        difference=difference,
        differences=differences,
    )


def slope_over_sizes(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The second primary hypothesis: how the primary arm's difference changes with log10 of the parameters,
    at the longer length. A least-squares line through the differences of all orders of all trunks; beside it
    a line through one mean for each trunk, as the orders of a trunk are not independent. None with fewer than
    three sizes.
    """
    chosen = [row for row in rows if row.arm == PRIMARY and row.share == LONG]
    if len({row.parameters for row in chosen}) < 3:
        return None
    points = [(math.log10(row.parameters), value) for row in chosen for value in row.differences.values()]
    means = [(math.log10(row.parameters), row.difference.mean) for row in chosen]
    return {
        name: {"slope": float(line.slope), "p": float(line.pvalue), "standard_error": float(line.stderr)}
        for name, line in (
            ("orders", stats.linregress(*zip(*points, strict=True))),
            ("trunks", stats.linregress(*zip(*means, strict=True))),
        )
    }


def table(rows: Sequence[Row], slope: dict[str, Any] | None) -> str:
    """Markdown."""
    if not rows:
        return "No branch has been trained yet."
    lines = [
        f"| trunk | length | arm | orders | to vanilla, {100 * (1 - CRITERION.alpha):g}% interval "
        "| p | p, Holm | training FLOPs | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row.difference
        width = "" if found.half_width is None else f" ±{found.half_width:.4f}"
        lines.append(
            f"| {row.trunk} | {row.share:.0%} | {row.arm} | {found.n} | {found.mean:+.4f}{width} "
            f"| {_p(found.p)} | {'primary' if row.primary else _p(row.p_corrected)} "
            f"| {row.flops_ratio:.2f} | {row.verdict} |"
        )
    if slope is not None:
        lines += [
            "",
            "Slope of the primary arm's difference over ten times the parameters: "
            f"{slope['orders']['slope']:+.4f} nats (p {_p(slope['orders']['p'])} over all orders; through "
            f"the trunks' means {slope['trunks']['slope']:+.4f}, p {_p(slope['trunks']['p'])}).",
        ]
    lines += ["", "![Gain against parameters](evidence.png)"]
    return "\n".join(lines)


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}"


def draw(rows: Sequence[Row]) -> Figure:
    """Gain against parameters at the longer length, with intervals, and the paper's at 1.2B."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    arms = dict.fromkeys(row.arm for row in rows if row.share == LONG)
    for number, arm in enumerate(arms):
        chosen = [row for row in rows if row.arm == arm and row.share == LONG]
        axes.errorbar(
            [row.parameters * 1.03**number for row in chosen],
            [-row.difference.mean for row in chosen],
            yerr=[row.difference.half_width or 0 for row in chosen],
            marker="o",
            capsize=3,
            linestyle="none",
            label=arm,
        )
    (paper,) = paper_losses(PHD)
    assert paper.size == "1.2B" and paper.difference is not None
    gain = -paper.difference
    axes.plot([1.2e9], [gain], marker="*", color="black", linestyle="none", label=f"paper: {PHD}")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="parameters", ylabel="validation loss gained over vanilla, nats a token")
    axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()

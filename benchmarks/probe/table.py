"""Finished cells to statistics, and those to a table in Markdown."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.probe.plan import ARMS, BASELINE, CRITERION, PROBES
from benchmarks.probe.tasks import guess
from benchmarks.probe.training import held_out
from phd.compare.statistics import holm, mean_interval, paired_difference

COLUMNS = ("arm", "seeds", "parameters", "FLOPs a token", "KV bytes", "accuracy", "to vanilla", "p", "Holm")
MISSING = "-"
CAPTION = (
    "Accuracy in percent over all positions of the held-out set: mean and {confidence:.0%} t-interval over "
    "seeds; beside vanilla in points, paired by seed, with p of the two-sided paired t-test, and p adjusted "
    "by Holm for the {tests} tests of the table (* below {significance}). A guess is the best answer that "
    "looks at no token. FLOPs of training, as a multiple of vanilla's too; KV bytes at the position of a "
    "sample that keeps most, fp32."
)


def summarize(cells: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """task -> accuracy of a guess, and of each arm: costs, accuracies by seed, their mean, and the difference
    to the baseline's of the seeds that both have; None where there is none.
    """
    accuracies: dict[tuple[str, str], dict[int, float]] = {}
    for cell in sorted(cells, key=lambda cell: cell["seed"]):
        accuracies.setdefault((cell["task"], cell["arm"]), {})[cell["seed"]] = cell["accuracy"]
    report: dict[str, dict[str, Any]] = {}
    for name, probe in PROBES.items():
        baseline = accuracies.get((name, BASELINE), {})
        arms = {}
        for arm, model in ARMS.items():
            found = accuracies.get((name, arm), {})
            paired = [found[seed] - baseline[seed] for seed in found if seed in baseline and arm != BASELINE]
            mean = mean_interval([*found.values()], CRITERION)
            difference = paired_difference(paired, CRITERION)
            arms[arm] = {
                **model.costs(probe.task),
                "accuracies": found,
                "mean": mean and asdict(mean),
                "difference": difference and asdict(difference),
            }
        report[name] = {"guess": guess(held_out(probe.task)[1]), "arms": arms}
    tested = [row["difference"] for row in _rows(report) if row["difference"] and row["difference"]["n"] > 1]
    for difference, adjusted in zip(tested, holm([each["p"] for each in tested]), strict=True):
        difference["p_holm"] = adjusted
    return report


def _rows(report: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [row for task in report.values() for row in task["arms"].values()]


def markdown(report: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, a part for each task, and what its columns mean."""
    lines = [COLUMNS, ("---", *("---:" for _ in COLUMNS[1:]))]
    for name, task in report.items():
        title = f"**{name}**: {PROBES[name].task.name}, {PROBES[name].task.length} positions"
        lines.append((title, "", "", "", "", f"a guess: {100 * task['guess']:.1f}", "", "", ""))
        flops = task["arms"][BASELINE]["flops_per_token"]
        lines += [(arm, *_cells(row, flops)) for arm, row in task["arms"].items()]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    tests = sum("p_holm" in (row["difference"] or {}) for row in _rows(report))
    alpha = CRITERION.alpha
    return f"{table}\n\n{CAPTION.format(confidence=1 - alpha, tests=tests, significance=alpha)}\n"


def _cells(row: Mapping[str, Any], flops: float) -> tuple[str, ...]:
    difference = row["difference"]
    tested = difference and "p_holm" in difference
    return (
        f"{len(row['accuracies'])}",
        f"{row['parameters']:,}",
        f"{row['flops_per_token']:,.0f} ({row['flops_per_token'] / flops:.2f}x)",
        f"{row['kv_bytes']:,}",
        _interval(row["mean"], ".1f"),
        _interval(difference, "+.1f"),
        _p(difference["p"]) if tested else MISSING,
        _p(difference["p_holm"]) + "*" * (difference["p_holm"] < CRITERION.alpha) if tested else MISSING,
    )


def _interval(value: Mapping[str, Any] | None, form: str) -> str:
    if value is None:
        return MISSING
    mean, low, high = (None if value[key] is None else 100 * value[key] for key in ("mean", "low", "high"))
    bounds = "" if low is None else f" [{low:{form}}, {high:{form}}]"
    return f"{mean:{form}}{bounds}"


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"

"""The table of a comparison, for the terminal, as Markdown and as LaTeX."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from phd.compare.paper import NOTE, paper_losses
from phd.compare.statistics import Mean, PairedDifference
from phd.compare.summary import Comparison, Summary

MISSING = "-"


def caption(comparison: Comparison) -> str:
    """How to read the table."""
    criterion = comparison.criterion
    text = (
        f"Losses in nats per token, means over seeds with {100 * (1 - criterion.alpha):g}% t-intervals: "
        "training loss over the last tenth of training, validation loss of the last validation. Differences "
        "are paired by seed, negative is better; p of the two-sided paired t-test; pairs: seeds that such a "
        f"difference with such a spread needs for a power of {100 * criterion.power:g}% at p < "
        f"{criterion.alpha:g}. Tokens and FLOPs to the baseline's final validation loss are multiples of the "
        "baseline's."
    )
    if any(summary.worth is not None for summary in comparison.summaries):
        text += (
            " Worth: the factor of parameters by which a vanilla model would change its loss as much, by "
            f"{comparison.law.about}; beside it the training FLOPs per token (to the baseline's) and the "
            "bytes of the KV cache (to vanilla's)."
        )
    return text


def _label(summary: Summary, baseline: Summary) -> str:
    marks = [
        f"at {progress:.0%}" if len(summary.seeds) == 1 else f"seed {seed} at {progress:.0%}"
        for seed, progress in summary.progress.items()
    ]
    return summary.label + (f" ({', '.join(marks)})" if marks else "")


def _seeds(summary: Summary, baseline: Summary) -> str:
    used = summary.validation_loss or summary.train_loss
    total = len(summary.seeds)
    return f"{total}" if used is None or used.n == total else f"{used.n} of {total}"


def _interval(value: Mean | None, form: str = ".4f") -> str:
    if value is None:
        return MISSING
    text = format(value.mean, form)
    return text if value.half_width is None else f"{text} \u00b1{value.half_width:.4f}"


def _difference(value: PairedDifference | None, seeds: int) -> str:
    text = _interval(value, "+.4f")
    if value is None or (value.n == seeds and value.n > 1):
        return text
    return f"{text} ({value.n} pair{'s' if value.n > 1 else ''})"


def _p(summary: Summary, baseline: Summary) -> str:
    difference = summary.validation_difference
    if difference is None or difference.p is None:
        return MISSING
    return "<0.001" if difference.p < 0.001 else f"{difference.p:.3f}"


def _needed(summary: Summary, baseline: Summary) -> str:
    difference = summary.validation_difference
    return (
        MISSING if difference is None or difference.pairs_needed is None else f"{difference.pairs_needed:,}"
    )


def _worth(summary: Summary, baseline: Summary) -> str:
    worth = summary.worth
    if worth is None or worth.parameters is None:
        return MISSING
    cache = "" if worth.kv_cache is None else f", {worth.kv_cache:.2f}x KV"
    return f"{worth.parameters:.2f}x for {worth.flops:.2f}x FLOPs{cache}"


def _reach(of: str) -> Callable[[Summary, Summary], str]:
    def cell(summary: Summary, baseline: Summary) -> str:
        if summary.validation_loss is None or baseline.validation_loss is None:
            return MISSING
        return "not reached" if summary.reach is None else f"{getattr(summary.reach, of):.2f}x"

    return cell


def _paper(of: str, form: str) -> Callable[[Summary, Summary], str]:
    def cell(summary: Summary, baseline: Summary) -> str:
        values = [(getattr(loss, of), loss.size) for loss in paper_losses(summary.name)]
        return ", ".join(f"{value:{form}} ({size})" for value, size in values if value is not None) or MISSING

    return cell


COLUMNS: dict[str, Callable[[Summary, Summary], str]] = {
    "run": _label,
    "seeds": _seeds,
    "tokens": lambda summary, _: f"{summary.tokens:,}",
    "training loss": lambda summary, _: _interval(summary.train_loss),
    "validation loss": lambda summary, _: _interval(summary.validation_loss),
    "training difference": lambda summary, _: _difference(summary.train_difference, len(summary.seeds)),
    "difference": lambda summary, _: _difference(summary.validation_difference, len(summary.seeds)),
    "p": _p,
    "pairs": _needed,
    "worth in parameters": _worth,
    "tokens to baseline": _reach("tokens_ratio"),
    "FLOPs to baseline": _reach("flops_ratio"),
    "training FLOPs": lambda summary, _: f"{summary.training_flops:.3g}",
    "parameters": lambda summary, _: f"{summary.parameters:,}",
    "tokens/s": lambda summary, _: (
        MISSING if summary.tokens_per_second is None else f"{summary.tokens_per_second:,.0f}"
    ),
    "paper: loss": _paper("loss", ".3f"),
    "paper: difference to vanilla": _paper("difference", "+.3f"),
}
"""Header: cell of a summary beside the baseline's."""

TERMINAL = [
    *("run", "seeds", "tokens", "training loss", "validation loss", "difference", "p", "pairs"),
    *("worth in parameters", "tokens to baseline", "FLOPs to baseline", "training FLOPs", "tokens/s"),
]
# The form of the paper's Table 1, with the paper's own row beside ours.
PAPER_FORM = [
    *("run", "seeds", "training loss", "validation loss", "difference", "p", "tokens to baseline"),
    *("FLOPs to baseline", "paper: loss", "paper: difference to vanilla"),
]


def rows(summaries: Sequence[Summary], columns: Sequence[str]) -> list[list[str]]:
    """The cells of ``columns`` (keys of COLUMNS), one row for each summary; the first is the baseline's."""
    return [[COLUMNS[name](summary, summaries[0]) for name in columns] for summary in summaries]


def print_table(comparison: Comparison, console: Console, runs: Sequence[Mapping[str, Any]] = ()) -> None:
    """Print a row for each group.

    Args:
        runs: the "runs" of :func:`phd.compare.summary.as_json`, to be listed beneath their groups.
    """
    summaries = comparison.summaries
    table = Table(caption=caption(comparison), caption_justify="left")
    for name in TERMINAL:
        table.add_column(name, justify="left" if name == "run" else "right")
    for summary, row in zip(summaries, rows(summaries, TERMINAL), strict=True):
        table.add_row(*row)
        for run in runs:
            if run["label"] == summary.label:
                cells = _run_cells(run)
                table.add_row(*(cells.get(name, "") for name in TERMINAL), style="dim")
    console.print(table, markup=False)


def _run_cells(run: Mapping[str, Any]) -> dict[str, str]:
    forms = {
        "tokens": ("tokens", ",.0f"),
        "training loss": ("train_loss", ".4f"),
        "validation loss": ("validation_loss", ".4f"),
        "difference": ("difference", "+.4f"),
        "training FLOPs": ("training_flops", ".3g"),
        "tokens/s": ("tokens_per_second", ",.0f"),
    }
    cells = {
        name: MISSING if run[key] is None else format(run[key], form) for name, (key, form) in forms.items()
    }
    return cells | {"run": f"  seed {run['seed']}"}


def markdown(comparison: Comparison) -> str:
    """The numbers as a table in Markdown."""
    columns = list(COLUMNS)
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows(comparison.summaries, columns)]
    # A bar ends a cell, even where Markdown would show it as code.
    table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
    return f"{table}\n\n{caption(comparison)}\n{NOTE}\n"


SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u00b1": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",  # the row before might take it for an option
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(comparison: Comparison) -> str:
    """The numbers as a LaTeX table in the form of the paper's Table 1; needs the package booktabs."""
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\small",
        rf"\begin{{tabular}}{{l{'r' * (len(PAPER_FORM) - 1)}}}",
        r"\toprule",
        _latex_row(PAPER_FORM),
        r"\midrule",
        *(_latex_row(row) for row in rows(comparison.summaries, PAPER_FORM)),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_escape(caption(comparison))} {_escape(NOTE)}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    # A hyphen before a number that stands alone is a minus; those within a name stay.
    texts = [
        r"--" if cell == MISSING else re.sub(r"(?<![\w-])-(?=\d)", "$-$", _escape(cell)) for cell in cells
    ]
    return " & ".join(texts) + r" \\"


def _escape(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)

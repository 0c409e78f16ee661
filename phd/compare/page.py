"""The comparison as one HTML file to look around in: the table, panels by plotly, samples; no network."""

import json
from collections.abc import Sequence
from html import escape
from itertools import groupby

from plotly.offline import get_plotlyjs

from phd.compare.figures import POINTS, color, figures
from phd.compare.groups import Group
from phd.compare.panels import expand
from phd.compare.paper import NOTE
from phd.compare.report import COLUMNS, caption, rows
from phd.compare.summary import Comparison, Summary
from phd.compare.template import SCRIPT, STYLE

SAMPLES = 100
"""The newest samples of a run that the page has."""


def page(title: str, comparison: Comparison) -> str:
    """A whole HTML document that loads nothing; ``title`` is plain text."""
    groups = comparison.groups
    panels = expand(run for group in groups for run in group.runs)
    drawn = figures(panels, groups, comparison.criterion)
    # In a script "<" could end it, whatever the quotes around.
    data = json.dumps([figure for _, figure in drawn], allow_nan=False).replace("<", r"\u003c")
    sections = [
        f"<h2>{escape(section)}</h2>\n"
        '<div class="panels">\n'
        + "\n".join(
            f'<div class="panel"><h3>{escape(panel.title)}</h3><div class="plot"></div></div>'
            for panel, _ in panels
        )
        + "\n</div>"
        for section, panels in groupby(drawn, key=lambda entry: entry[0].section)
    ]
    samples = [_samples(group, number) for number, group in enumerate(groups)]
    if any(samples):
        sections.append(f'<h2>Samples</h2>\n<div class="texts">\n{"\n".join(samples)}\n</div>')
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<div class="scroll results">
{_results(comparison.summaries)}
</div>
<details><summary>How to read this</summary>
<p>{escape(caption(comparison))}</p>
<p>{escape(NOTE)}</p>
<p>A click on a name below hides that group in every panel, a double click all others; dragging in a panel
zooms and a double click there shows all. Curves have {POINTS:,} points at most, means over neighbouring
iterations; smoothed ones are exponential moving averages, with what was measured faint behind them. Loss axes
leave out the first fifth of training, whose fall is steep.</p>
</details>
<div class="legend">
{_legend(groups)}
</div>
{"\n".join(sections)}
<script type="application/json" id="figures">{data}</script>
<script>{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _results(summaries: Sequence[Summary]) -> str:
    names = list(COLUMNS)
    return _table([names, *rows(summaries, names)])


def _legend(groups: Sequence[Group]) -> str:
    return "\n".join(
        f'<button type="button" aria-pressed="true">{_swatch(number)}{escape(group.label)}</button>'
        for number, group in enumerate(groups)
    )


def _swatch(number: int) -> str:
    return f'<span class="swatch" style="background:{color(number)}"></span>'


def _samples(group: Group, number: int) -> str:
    """A table for each run of the group that has samples, the newest first."""
    tables = []
    for run in group.runs:
        # Those of one iteration stay in the order of their prompts.
        newest = sorted(run.samples, key=lambda sample: -sample.iteration)[:SAMPLES]
        if not newest:
            continue
        cells = [[f"{sample.tokens:,}", sample.prompt, sample.text] for sample in newest]
        tables.append(
            f'<div class="samples" data-group="{number}">'
            f"<h3>{_swatch(number)}{escape(group.label)}, seed {run.seed}</h3>"
            f'<div class="scroll">{_table([["tokens seen", "prompt", "continued"], *cells])}</div></div>'
        )
    return "\n".join(tables)


def _table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head."""
    texts = [_row(lines[0], "th"), *(_row(line, "td") for line in lines[1:])]
    return "<table>\n" + "\n".join(texts) + "\n</table>"


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

"""Draw docs/house.svg: the packages of the repository in rows, and which imports which.

python -m tools.draw_house
"""

from pathlib import Path

OUTPUT = Path(__file__).parents[1] / "docs" / "house.svg"
ROWS = (
    ((0, "pretrain_phd.py", "batch, loss, main"), (2, "phd/commands", "one module a command")),
    (
        *(
            (0, "phd/training", "flags, refusals, record"),
            (1, "phd/evaluation", "the harness, long contexts"),
        ),
        *((2, "phd/serving", "transformers' server"), (3, "phd/compare", "tables, plots, statistics")),
    ),
    ((1, "phd/loading.py", "a model to infer with"), (3, "phd/run", "lock, status, record")),
    ((0, "phd/checkpoint", "read, choose, keep"),),
    ((0, "phd/megatron", "the model in Megatron"), (2, "phd/hf", "the model in transformers")),
    (
        (1, "phd/attention", "kernels, layouts: torch alone"),
        (3, "data_tools", "text to .bin/.idx: stands alone"),
    ),
    ((0, "phd/rules", "what attention is, as values: standard library alone"),),
)
"""From the top, each in its column and with what it does; what lies lower is imported from above."""
ARROWS = (
    *(("phd/rules", "phd/attention"), ("phd/attention", "phd/megatron"), ("phd/attention", "phd/hf")),
    *(("phd/megatron", "phd/checkpoint"), ("phd/checkpoint", "phd/training"), ("phd/hf", "phd/loading.py")),
    *(("phd/checkpoint", "phd/loading.py"), ("phd/loading.py", "phd/evaluation"), ("phd/run", "phd/compare")),
    *(("phd/hf", "phd/serving"), ("phd/run", "phd/training"), ("phd/training", "pretrain_phd.py")),
    *(("phd/evaluation", "phd/commands"), ("phd/serving", "phd/commands"), ("phd/compare", "phd/commands")),
    ("phd/training", "phd/commands"),
)
"""From what is imported to what imports it; tests/tools/test_draw_house.py finds each in the sources."""
WIDTH, ROW, BOX, HEIGHT, GAP = 910, 98, 200, 54, 22
STYLE = """
  .name { font: 600 14px ui-monospace, monospace; fill: #1f2328 }
  .note { font: 12px system-ui, sans-serif; fill: #59636e }
  .box { fill: #f6f8fa; stroke: #8c959f; stroke-width: 1.5 }
  .base { fill: #ddf4ff; stroke: #0969da }
  .line { stroke: #8c959f; stroke-width: 1.3; fill: none; marker-end: url(#end) }
  .end { fill: #8c959f }
  @media (prefers-color-scheme: dark) {
    .name { fill: #f0f6fc } .note { fill: #9198a1 } .box { fill: #151b23 } .base { fill: #132339 }
  }
"""


def main() -> None:
    OUTPUT.write_text(picture(), encoding="utf-8")


def picture() -> str:
    """The file's text."""
    boxes, parts = places(), []
    for lower, upper in ARROWS:
        (x, y, width), (to_x, to_y, to_width) = boxes[lower], boxes[upper]
        begin, end = x + width / 2, to_x + to_width / 2
        middle = (y + to_y + HEIGHT) / 2
        parts.append(
            f'<path class="line" d="M{begin:g} {y:g} C{begin:g} {middle:g} {end:g} {middle:g} '
            f'{end:g} {to_y + HEIGHT + 6:g}"/>'
        )
    for row in ROWS:
        for _, name, note in row:
            x, y, width = boxes[name]
            kind = "box base" if name == "phd/rules" else "box"
            parts.append(
                f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{HEIGHT}" rx="6"/>'
            )
            middle = x + width / 2
            for text, below, style in ((name, 23, "name"), (note, 42, "note")):
                at = f'x="{middle:g}" y="{y + below:g}"'
                parts.append(f'<text class="{style}" text-anchor="middle" {at}>{text}</text>')
    height = len(ROWS) * ROW
    lines = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">
<title>Packages and what imports what</title>
<style>{STYLE}</style>
<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path class="end" d="M0 0 L8 4 L0 8 z"/></marker></defs>
{lines}
</svg>
"""


def places() -> dict[str, tuple[float, float, float]]:
    """Left, top and width of each box."""
    found: dict[str, tuple[float, float, float]] = {}
    for number, row in enumerate(ROWS):
        for column, name, _ in row:
            width = WIDTH - 2 * GAP if row == ROWS[-1] else BOX
            found[name] = (GAP + column * (BOX + GAP), number * ROW + GAP, width)
    return found


if __name__ == "__main__":
    main()

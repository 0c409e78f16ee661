"""Draw docs/copies.svg: copies of tokens as rows, and the one KV cache below them.

python -m tools.draw_copies
"""

from pathlib import Path

from phd.rules.variant import Variant

OUTPUT = Path(__file__).parents[1] / "docs" / "copies.svg"
TOKENS = ("A", "model", "that", "thinks", "longer")
NEXT = "per"
VARIANT = Variant.parse("PHD-CSWA-3-2-3")
"""Two hidden copies, a window of 2 positions, chunks of 3."""

LEFT, TOP, STEP, WIDTH, HEIGHT = 150, 52, 112, 84, 34
"""Of the first box; from a token to the next; of a box."""
ROW = 52
STYLE = """
  .text { font: 14px system-ui, sans-serif; fill: #1f2328 }
  .note { font: 13px system-ui, sans-serif; fill: #59636e }
  .box { fill: none; stroke: #8c959f; stroke-width: 1.5 }
  .original, .cache { fill: #0969da; stroke: #0969da }
  .seen { fill: #ddf4ff; stroke: #0969da; stroke-width: 2 }
  .asks { fill: #1a7f37; stroke: #1a7f37 }
  .white { font: 14px system-ui, sans-serif; fill: #ffffff }
  .line { stroke: #8c959f; stroke-width: 1.2; fill: none }
  .border { stroke: #8c959f; stroke-dasharray: 4 4 }
  @media (prefers-color-scheme: dark) {
    .text { fill: #f0f6fc } .note { fill: #9198a1 } .seen { fill: #132339 }
  }
"""


def main() -> None:
    OUTPUT.write_text(picture(), encoding="utf-8")


def picture() -> str:
    """The file's text: what the last copy of the last token sees, by the rule."""
    copies, last = VARIANT.copies, len(TOKENS) - 1
    (rule,) = VARIANT.layers(1)
    assert copies.chunk is not None
    rows = [f"hidden copy {copy}" for copy in range(copies.count - 1, 0, -1)] + ["original"]
    parts = []
    for row, name in enumerate(rows):
        parts.append(_text(LEFT - 16, _y(row) + 22, name, anchor="end"))
        copy = copies.count - 1 - row
        for position in range(len(TOKENS)):
            asks = (position, copy) == (last, copies.count - 1)
            seen = rule.sees(last, copies.count - 1, position, copy)
            kind = "original" if copy == 0 else "asks" if asks else "seen" if seen else ""
            parts.append(_box(_x(position), _y(row), kind))
    bottom = _y(len(rows))
    for position, token in enumerate(TOKENS):
        middle = _x(position) + WIDTH / 2
        parts.append(f'<path class="line" d="M{middle} {bottom - ROW + HEIGHT} V{bottom}"/>')
        parts.append(_box(_x(position), bottom, "cache"))
        parts.append(_text(middle, bottom + 22, "k, v", "white", "middle"))
        parts.append(_text(middle, bottom + HEIGHT + 26, token, anchor="middle"))
    parts.append(_text(LEFT - 16, bottom + 22, "KV cache", anchor="end"))
    parts.append(_text(LEFT - 16, bottom + HEIGHT + 26, "token", anchor="end"))
    end = _x(last) + WIDTH / 2
    parts.append(f'<path class="line" d="M{end} {TOP} V{TOP - 18}"/>')
    parts.append(_text(end, TOP - 24, f"predicts “{NEXT}”", anchor="middle"))
    for border in range(copies.chunk, len(TOKENS), copies.chunk):
        x = _x(border) - (STEP - WIDTH) / 2
        parts.append(f'<path class="border" d="M{x} {TOP - 12} V{bottom - ROW - 8}"/>')
        parts.append(_text(x - 8, TOP - 24, "a chunk ends", "note", "end"))
    notes = (
        f"{VARIANT}: each token is computed {copies.count} times, and leaves one entry in the cache.",
        "The green copy sees all originals, and the hidden copies in light blue.",
    )
    for line, note in enumerate(notes):
        parts.append(_text(16, bottom + HEIGHT + 58 + 20 * line, note, "note"))
    width, height = _x(last) + WIDTH + 24, bottom + HEIGHT + 94
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def _x(position: int) -> int:
    return LEFT + STEP * position


def _y(row: int) -> int:
    return TOP + ROW * row


def _box(x: int, y: int, kind: str) -> str:
    return f'<rect class="box {kind}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'


def _text(x: float, y: float, words: str, kind: str = "text", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


if __name__ == "__main__":
    main()

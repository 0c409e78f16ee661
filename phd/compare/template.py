"""Style and script of the page. Both work without a network, on a phone, and in light and dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --back: #f6f7f9; --card: #ffffff; --text: #1f2328; --soft: #59636e; --line: #d9dee4; --grid: #e8ebef;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #0f1318; --card: #171c23; --text: #e3e8ee; --soft: #97a1ad; --line: #303843; --grid: #29303a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.25rem clamp(0.75rem, 2vw, 2rem) 3rem; max-width: 110rem;
  background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif;
}
h1 { font-size: 1.5rem; margin: 0 0 0.75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 1.75rem 0 0.75rem; }
h3 { font-size: 0.95rem; margin: 0; overflow-wrap: anywhere; }
.scroll { overflow: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.75rem; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; background: var(--card); }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
.results th:first-child, .results td:first-child { position: sticky; left: 0; background: var(--card); }
details { margin: 0.6rem 0; font-size: 0.85rem; color: var(--soft); max-width: 65rem; }
summary { cursor: pointer; }
.legend {
  position: sticky; top: 0; z-index: 10; display: flex; flex-wrap: wrap; gap: 0.4rem;
  margin: 1rem 0 0; padding: 0.6rem 0; background: var(--back);
  max-height: 40vh; overflow: auto;
}
.legend button {
  display: flex; align-items: center; gap: 0.5rem; padding: 0.3rem 0.75rem; text-align: left;
  font: inherit; font-size: 0.85rem; color: inherit; cursor: pointer;
  background: var(--card); border: 1px solid var(--line); border-radius: 1rem; overflow-wrap: anywhere;
}
.legend button[aria-pressed=false] { opacity: 0.45; text-decoration: line-through; }
.swatch { flex: none; width: 0.8rem; height: 0.8rem; border-radius: 50%; }
.panels { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
.panel {
  min-width: 0; padding: 0.8rem 0.6rem 0.3rem;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
}
.panel h3 { padding: 0 0.4rem; }
.plot { height: 19rem; }
.texts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); }
.samples { min-width: 0; }
.samples h3 { display: flex; align-items: center; gap: 0.5rem; margin: 0 0 0.4rem; }
.samples .scroll { max-height: 26rem; }
.samples th { position: sticky; top: 0; }
.samples th:nth-child(n+2), .samples td:nth-child(n+2) { text-align: left; }
.samples td { vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere; }
.samples td:first-child { white-space: nowrap; }
.samples td:nth-child(2) { width: 25%; min-width: 8rem; color: var(--soft); }
.samples td:nth-child(3) { min-width: 14rem; }
@media (max-width: 40rem) {
  .results td:first-child { white-space: normal; min-width: 8.5rem; }
  .samples tr { display: block; padding: 0.5rem 0; border-bottom: 1px solid var(--line); }
  .samples tr:first-child { display: none; }
  .samples td { display: block; width: auto !important; padding: 0.1rem 0.75rem; border: 0; }
}
[hidden] { display: none !important; }
@media print { .legend { position: static; } .panel { break-inside: avoid; } }
"""

SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll(".plot")];
const buttons = [...document.querySelectorAll(".legend button")];
const dark = matchMedia("(prefers-color-scheme: dark)");

function layout(figure) {
  const style = getComputedStyle(document.documentElement);
  const color = name => style.getPropertyValue(name).trim();
  const axis = own => ({
    gridcolor: color("--grid"), linecolor: color("--line"), zerolinecolor: color("--soft"),
    zeroline: false, automargin: true, ...own,
    title: {standoff: 8, font: {size: 12}, ...own.title},
  });
  return {
    font: {family: "system-ui, sans-serif", size: 12, color: color("--soft")},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: {l: 55, r: 12, t: 12, b: 45}, showlegend: false, hovermode: "closest",
    // A finger scrolls the page.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hoverlabel: {bgcolor: color("--card"), font: {color: color("--text")}},
    xaxis: axis(figure.layout.xaxis), yaxis: axis(figure.layout.yaxis),
  };
}

function draw() {
  const config = {responsive: true, displayModeBar: false};
  return Promise.all(plots.map((plot, i) =>
    Plotly.react(plot, plot.data || figures[i].data, layout(figures[i]), config)));
}

// A group is one color and one button, whatever the panel.
function show(shown) {
  buttons.forEach((button, group) => button.setAttribute("aria-pressed", shown[group]));
  plots.forEach(plot => Plotly.restyle(plot, {visible: plot.data.map(trace => shown[trace.meta])}));
  document.querySelectorAll("[data-group]").forEach(part => { part.hidden = !shown[part.dataset.group]; });
}
const shown = () => buttons.map(button => button.getAttribute("aria-pressed") === "true");
buttons.forEach((button, group) => {
  button.addEventListener("click", () => show(shown().with(group, !shown()[group])));
  button.addEventListener("dblclick", () => {
    const alone = shown().every((on, other) => on === (other === group));
    show(buttons.map((_, other) => alone || other === group));
  });
});

draw();
dark.addEventListener("change", draw);
"""

"""The page in a real browser, without a network: what it draws, what a click does, how it fits."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from phd.compare.groups import group_runs
from phd.compare.logs import find_runs
from phd.compare.page import page
from phd.compare.panels import COLORS
from phd.compare.summary import summarize
from tests.compare.conftest import PHD
from tests.compare.test_figures import ALL

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome", "chromium-browser"))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None,
        reason="NO BROWSER, the page was not looked at: apt-get install --no-install-recommends chromium",
    ),
]

# Before anything else of the page runs.
LISTEN = """<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message)), true);
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
for (const level of ["error", "warn"]) console[level] = (...all) => errors.push(all.join(" "));
</script>"""

# After everything else of the page; tells the document around, which outlives the clicks.
PROBE = """<script>
const wait = ms => new Promise(resolve => setTimeout(resolve, ms));
const all = (selector, part = document) => [...part.querySelectorAll(selector)];
const box = part => part.getBoundingClientRect();
const before = (a, b) => a.right <= b.left + 1 || a.bottom <= b.top + 1;
const apart = (a, b) => before(a, b) || before(b, a);
const within = (a, b) => a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom;

function look() {
  return {
    panels: all(".panel").map(panel => ({
      title: panel.querySelector("h3").textContent,
      svgs: all(".plot svg.main-svg", panel).length,
      traces: all(".scatterlayer .trace", panel).length,
      // A band has no line.
      colors: [...new Set(all(".scatterlayer .trace .js-line", panel)
        .filter(line => parseFloat(line.style.strokeWidth) > 0).map(line => line.style.stroke))].sort(),
      axes: [".xtitle", ".ytitle"].map(name => panel.querySelector(name)?.textContent ?? ""),
    })),
    samples: all(".samples").filter(part => box(part).height > 0).map(part => ({
      title: part.querySelector("h3").textContent,
      rows: all("tr", part).map(row => all("th, td", row).map(cell => cell.textContent)),
    })),
  };
}

// What lies on what it should not, or sticks out.
function misfits() {
  const found = [];
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push("the page is wider than the window");
  for (const panel of all(".panel")) {
    const title = panel.querySelector("h3").textContent;
    const ticks = all(".xtick text, .ytick text", panel);
    for (const text of all(".xtitle, .ytitle", panel)) {
      if (ticks.some(tick => !apart(box(tick), box(text))))
        found.push(`${title}: ${text.textContent} on ticks`);
    }
    for (const axis of [".xtick text", ".ytick text"]) {
      const labels = all(axis, panel);
      labels.slice(1).forEach((label, i) => {
        if (!apart(box(labels[i]), box(label))) found.push(`${title}: ${axis} on each other`);
      });
    }
    for (const text of all("text, h3", panel)) {
      const own = box(text);
      if (own.width && !within(own, box(panel))) found.push(`${title}: ${text.textContent} sticks out`);
    }
  }
  return found;
}

addEventListener("load", async () => {
  const told = {};
  try {
    while (all(".plot").some(plot => !plot.querySelector("svg .scatterlayer"))) await wait(50);
    await wait(200);
    const buttons = all(".legend button");
    const click = async (button, type = "click") => {
      button.dispatchEvent(new MouseEvent(type, {bubbles: true}));
      await wait(300);
      return look();
    };
    told.first = look();
    told.misfits = misfits();
    told.width = innerWidth;
    told.background = getComputedStyle(document.body).backgroundColor;
    told.tick = getComputedStyle(document.querySelector(".xtick text")).fill;
    told.hidden = await click(buttons[1]);
    told.pressed = buttons.map(button => button.getAttribute("aria-pressed"));
    told.back = await click(buttons[1]);
    told.alone = await click(buttons[1], "dblclick");
    told.all = await click(buttons[1], "dblclick");
    told.loaded = performance.getEntriesByType("resource").map(entry => entry.name);
  } catch (error) {
    errors.push(String(error));
  }
  parent.postMessage(JSON.stringify({...told, errors}), "*");
});
</script>"""

# A browser's window is at least 500 pixels wide; a frame is as narrow as a phone.
AROUND = """<!DOCTYPE html><body style="margin: 0"><pre id="told"></pre>
<script>
addEventListener("message", event => document.getElementById("told").textContent = event.data);
</script>
<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>"""


def browse(text: str, folder: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """What PROBE told of the page ``text`` in a window that is ``width`` pixels wide."""
    assert BROWSER is not None
    probed = text.replace("<head>", f"<head>{LISTEN}", 1).removesuffix("</body>\n</html>\n") + PROBE
    (folder / "page.html").write_text(probed)
    (folder / "around.html").write_text(AROUND.format(width=width))
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
        f"--user-data-dir={folder / 'profile'}",
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"),  # no network
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        *("--window-size=1440,900", "--virtual-time-budget=20000", "--dump-dom"),
        (folder / "around.html").as_uri(),
    ]
    # A new session: nothing of the browser outlives a test that is given up.
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, start_new_session=True)
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert told and told[1], f"the page told nothing: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(unescape(told[1]))
    return found


def rgb(color: str) -> str:
    return f"rgb({', '.join(str(int(color[start : start + 2], 16)) for start in (1, 3, 5))})"


@pytest.fixture
def text(make_full_run):
    folders = [
        make_full_run(f"{name}{seed}", shift=shift * seed, seed=seed, **about)
        for name, shift, about in (
            ("v", 0.0, {}),
            ("p", -0.25, PHD),
            ("q", -0.3, PHD | {"name": "PHD-CSWA-3-16-32", "copies": 3, "flops_per_token": 18e3}),
        )
        for seed in (1, 2)
    ]
    groups = group_runs([run for folder in folders for run in find_runs(folder)])
    return page("A comparison", summarize(groups))


def test_desktop_in_light(text, tmp_path):
    told = browse(text, tmp_path, 1440)
    assert told["errors"] == [] and told["loaded"] == []
    assert told["width"] == 1440 and told["background"] == "rgb(246, 247, 249)"
    assert told["misfits"] == []
    first = told["first"]
    assert [panel["title"] for panel in first["panels"]] == ALL
    # Two seeds of three groups; the baseline has no difference to itself and no original copy of its own.
    colors = [rgb(color) for color in COLORS[:3]]
    for panel in first["panels"]:
        assert panel["svgs"] >= 1 and panel["axes"][0]
        difference = "minus" in panel["title"]
        assert panel["colors"] == sorted(colors[1:] if difference else colors)
        assert panel["traces"] == (8 if difference else 10 if "original" in panel["title"] else 6)
        assert panel["axes"][1] or panel["title"] == "Learning rate"


def test_click_hides_a_group_in_every_panel(text, tmp_path):
    told = browse(text, tmp_path, 1440)
    assert told["pressed"] == ["true", "false", "true"]
    hidden, seen = rgb(COLORS[1]), [rgb(COLORS[0]), rgb(COLORS[2])]
    for panel in told["hidden"]["panels"]:
        assert panel["colors"] == sorted(seen[1:] if "minus" in panel["title"] else seen)
    for panel in told["alone"]["panels"]:
        assert panel["colors"] == [hidden]
    assert told["back"] == told["all"] == told["first"]
    names = ["vanilla", PHD["name"], "PHD-CSWA-3-16-32"]
    titles = {
        state: [part["title"] for part in told[state]["samples"]] for state in ("first", "hidden", "alone")
    }
    runs = {name: [f"{name}, seed {seed}" for seed in (1, 2)] for name in names}
    assert titles["first"] == [title for name in names for title in runs[name]]
    assert titles["hidden"] == runs[names[0]] + runs[names[2]]
    assert titles["alone"] == runs[names[1]]
    head, newest, *_ = told["first"]["samples"][0]["rows"]
    assert head == ["tokens seen", "prompt", "continued"]
    assert newest == ["160", "Once <b>", "at 20\nit was"]


def test_phone_in_dark(text, tmp_path):
    told = browse(text, tmp_path, 390, dark=True)
    assert told["errors"] == [] and told["misfits"] == []
    assert told["width"] == 390 and told["background"] == "rgb(15, 19, 24)"
    assert told["tick"] == "rgb(151, 161, 173)"
    assert len(told["first"]["panels"]) == len(ALL)

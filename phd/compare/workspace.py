"""The same panels as the page in Weights & Biases: a workspace, and a report with the table."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from phd.compare.figures import color
from phd.compare.groups import Group
from phd.compare.panels import AXES, Panel, expand
from phd.compare.report import markdown
from phd.compare.summary import Comparison
from phd.run.record import ORIGINAL_LOSS, VALIDATION_LOSS

if TYPE_CHECKING:  # importing it takes seconds, and only --wandb needs it
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

TIMEOUT = 10
"""Seconds to wait for the server's first answer."""
LINES = 100
"""Runs in a panel at most; W&B's own limit is 10."""


def make_workspace(
    place: tuple[str, str], name: str, groups: Sequence[Group], vary: Sequence[str] = ()
) -> "Workspace":
    """A workspace of all panels but those that only the page can draw; talks to no server.

    Its runs are those of the same W&B groups, whatever their state, in the colors of the page.

    Args:
        place: entity and project.
        name: what it is called in W&B, without emoji.
        groups: the first one is the baseline.
        vary: underscored names of arguments that make groups of their own beside the variant.
    """
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=section,
            panels=[_panel(panel) for panel in panels],
            is_open=section != "System",
            layout_settings=ws.SectionLayoutSettings(columns=3, rows=3),
        )
        for section, panels in groupby(_panels(groups), key=lambda panel: panel.section)
    ]
    # With --vary a group is more than its variant, and has no one color there.
    colors: dict[object, object] = {}
    if not vary:
        for number, group in enumerate(groups):
            colors.setdefault(group.name, color(number))
    return ws.Workspace(
        entity=place[0],
        project=place[1],
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=AXES["tokens"].wandb, max_runs=LINES),
        runset_settings=ws.RunsetSettings(
            filters=_filter(groups),
            groupby=[ws.Config("phd.name"), *(ws.Config(name) for name in vary)],
            group_colors=colors,
        ),
    )


def make_report(
    place: tuple[str, str],
    name: str,
    comparison: Comparison,
    vary: Sequence[str] = (),
) -> "Report":
    """A report: the table as it is now, and the panels, which go on with the runs.

    To save or dump it needs a login, for it looks its runs' project up; see :func:`make_workspace`.
    """
    import wandb_workspaces.reports.v2 as wr

    entity, project = place
    groups = comparison.groups
    runs = wr.Runset(
        entity=entity,
        project=project,
        name=name,
        filters=_filter(groups),
        groupby=["config.phd.name", *(f"config.{argument}" for argument in vary)],
    )
    blocks: list[Any] = [wr.MarkdownBlock(text=markdown(comparison))]
    for section, panels in groupby(_panels(groups), key=lambda panel: panel.section):
        grid = wr.PanelGrid(runsets=[runs], panels=[_panel(panel) for panel in panels])
        blocks += [wr.H2(text=section), grid]
    # W&B takes no longer title.
    return wr.Report(entity=entity, project=project, title=name[:128], blocks=blocks, width="fluid")


def _panels(groups: Sequence[Group]) -> list[Panel]:
    runs = [run for group in groups for run in group.runs]
    sets = sorted({name for run in runs for name in run.validation_sets})
    # With named sets the plain names stand for means of ours, which W&B has not got: there it is every set.
    named = {loss: [f"{loss}-{name}" for name in sets] for loss in (VALIDATION_LOSS, ORIGINAL_LOSS) if sets}
    return [
        replace(panel, y=tuple(name for metric in panel.y for name in named.get(metric, [metric])))
        for panel in expand(runs)
        if panel.kind != "difference"
    ]


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.y[0], layout=wr.Layout(w=24, h=12))
    chosen: dict[str, Any] = {"y": list(panel.y)}
    if panel.kind == "system":
        chosen = {"metric_regex": panel.y[0]}
    if panel.smoothing:
        chosen |= {"smoothing_type": "exponential", "smoothing_factor": panel.smoothing}
        chosen |= {"smoothing_show_original": True}
    return wr.LinePlot(
        title=panel.title,
        x=AXES[panel.x].wandb,
        title_x=AXES[panel.x].title,
        title_y=panel.unit or None,
        log_y=panel.log or None,
        range_y=(0, None) if panel.zero else (None, None),
        ignore_outliers=panel.late or None,
        max_runs_to_show=LINES,
        layout=wr.Layout(w=8, h=7),
        **chosen,
    )


def _filter(groups: Sequence[Group]) -> str:
    """The runs of the same W&B groups: the folders above them, see phd/run/wandb.py."""
    names = sorted({run.path.resolve().parent.name for group in groups for run in group.runs})
    return f"Metric('Group') in [{', '.join(map(repr, names))}]"


def unreachable() -> str | None:
    """Why nothing can be saved in W&B: offline, no key, no server; None if it should work. Never asks."""
    import wandb

    try:
        settings = wandb.setup().settings
        mode = os.environ.get("WANDB_MODE", settings.mode)
        if mode not in ("online", "shared"):
            return f"WANDB_MODE is {mode}"
        try:
            urllib.request.urlopen(settings.base_url, timeout=TIMEOUT).close()
        except urllib.error.HTTPError:
            pass  # it answers, and that is all we ask
        except OSError as error:
            return f"{settings.base_url} does not answer ({reason(error)})"
        if not wandb.login(prompt=False):
            return "no API key was found; 'wandb login' stores one, or set WANDB_API_KEY"
    except Exception as error:  # its errors are of many kinds, and none is worth a lost dashboard
        return reason(error)
    return None


def reason(error: Exception) -> str:
    """One line that says what went wrong, with anything that might be a key left out."""
    text = " ".join(str(error).split()) or type(error).__name__
    if key := os.environ.get("WANDB_API_KEY"):
        text = text.replace(key, "***")
    return re.sub(r"\b(wandb_v\d+_\w+|[0-9a-f]{40,}|\w{60,})\b", "***", text)[:300]

"""`phd dashboard RUN RUN ...`"""

import argparse
from pathlib import Path

from phd.compare.cli import add_run_arguments, read_groups
from phd.compare.summary import Comparison, summarize
from phd.run.files import write_json, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--output",
        metavar="HTML",
        type=Path,
        default=Path("dashboard.html"),
        help="the page to write (default: %(default)s)",
    )
    parser.add_argument(
        "--wandb",
        metavar="ENTITY/PROJECT",
        type=_entity_and_project,
        help="save a workspace and a report in W&B instead; where that is out of reach, write the page and "
        "the workspace as JSON beside it",
    )
    parser.add_argument("--name", help="what to call it (default: the folder above the first run)")


def _entity_and_project(text: str) -> tuple[str, str]:
    entity, _, project = text.partition("/")
    if not entity or not project or "/" in project:
        raise argparse.ArgumentTypeError(f"{text} is not of the form ENTITY/PROJECT")
    return entity, project


def run(args: argparse.Namespace) -> int:
    """Write the page, or save the workspace and the report and print where they are.

    Raises:
        FileNotFoundError, ValueError: see :func:`phd.compare.cli.read_groups`.
    """
    groups = read_groups(args)
    comparison = summarize(groups)
    name = args.name or groups[0].runs[0].path.resolve().parent.name
    if args.wandb is None:
        _write_page(args.output, name, comparison)
        return 0

    from phd.compare.workspace import make_report, make_workspace, reason, unreachable

    workspace = make_workspace(args.wandb, name, groups, args.vary)
    missing, problem = "Workspace and report", unreachable()
    if problem is None:
        try:
            workspace.save()
            print(f"Workspace: {workspace.url}")
            missing = "Report"
            report = make_report(args.wandb, name, comparison, args.vary).save()
            print(f"Report: {report.url}")
            return 0
        except Exception as error:  # W&B's errors are of many kinds, and none is worth a lost dashboard
            problem = reason(error)
    print(f"{missing} not saved in W&B: {problem}")
    _write_page(args.output, name, comparison)
    beside = args.output.with_name(f"{args.output.stem}.workspace.json")
    content = workspace._to_model().model_dump(by_alias=True, exclude_none=True)
    write_json(beside, content)
    print(f"Written: {beside}")
    return 0


def _write_page(output: Path, name: str, comparison: Comparison) -> None:
    # It imports plotly, which a save in W&B need not wait for.
    from phd.compare.page import page

    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page(name, comparison))
    print(f"Written: {output}")

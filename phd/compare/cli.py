"""`phd compare RUN RUN ...`"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from phd.compare.arguments import refuse_differences
from phd.compare.groups import Group, group_runs
from phd.compare.logs import find_runs
from phd.compare.report import latex, markdown, print_table
from phd.compare.statistics import USUAL, Criterion
from phd.compare.summary import as_json, summarize
from phd.compare.worth import PARSCALE, ScalingLaw
from phd.run.arguments import argument_name
from phd.run.files import write_bytes


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Which runs are compared, and how; for :func:`read_groups`."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="a run's --run-dir, or a folder above several; vanilla is the baseline, or else the first run",
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="the variant to compare with, as the table names it"
    )
    parser.add_argument(
        "--vary",
        metavar="FLAG",
        action="append",
        type=argument_name,
        default=[],
        help="a flag of pretrain_phd.py that may differ too, such as train-iters; may be repeated",
    )


def read_groups(args: argparse.Namespace) -> list[Group]:
    """The groups of the runs, which are comparable; the first one is the baseline.

    Raises:
        FileNotFoundError, ValueError: see :func:`find_runs`, :func:`refuse_differences`, :func:`group_runs`.
    """
    runs = list({run.path.resolve(): run for folder in args.runs for run in find_runs(folder)}.values())
    refuse_differences(runs, args.vary)
    return group_runs(runs, args.vary, args.baseline)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--output",
        metavar="PREFIX",
        type=Path,
        default=Path("comparison"),
        help="write PREFIX.json, .png, .html, .md and .tex (default: %(default)s)",
    )
    parser.add_argument("--seeds", action="store_true", help="list the seeds beneath their groups")
    parser.add_argument(
        "--alpha",
        metavar="P",
        type=float,
        default=USUAL.alpha,
        help="a difference is one at p below it; intervals have the confidence 1 - P (default: %(default)s)",
    )
    parser.add_argument(
        "--power",
        metavar="SHARE",
        type=float,
        default=USUAL.power,
        help='the chance to find a difference at --alpha, for the column "pairs" (default: %(default)s)',
    )
    parser.add_argument(
        "--sizes",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="vanilla runs of three sizes or more: what a difference is worth in parameters is told by the "
        "law that fits them, instead of ParScale's",
    )


def run(args: argparse.Namespace) -> int:
    """Print the table, write the plots and the numbers.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_groups`, :class:`Criterion`, :class:`ScalingLaw`.
    """
    criterion = Criterion(args.alpha, args.power)
    groups = read_groups(args)
    law = PARSCALE
    if args.sizes:
        law = ScalingLaw.fit([run for folder in args.sizes for run in find_runs(folder)])
    comparison = summarize(groups, criterion, law)
    numbers = as_json(comparison)
    # A pipe has no width of its own, and rich would fold the table at 80 columns.
    console = Console()
    console = console if console.is_terminal else Console(width=240)
    print_table(comparison, console, numbers["runs"] if args.seeds else ())

    # They import matplotlib and plotly, which the table need not wait for.
    from phd.compare.page import page
    from phd.compare.plot import plot

    args.output.parent.mkdir(parents=True, exist_ok=True)
    contents = {
        "json": json.dumps(numbers, indent=1, allow_nan=False).encode() + b"\n",
        "png": plot(groups, criterion),
        "html": page(f"Compared with {groups[0].label}", comparison).encode(),
        "md": markdown(comparison).encode(),
        "tex": latex(comparison).encode(),
    }
    for end, content in contents.items():
        write_bytes(args.output.with_name(f"{args.output.name}.{end}"), content)
    console.print(
        f"Written: {args.output}.{{{','.join(contents)}}}", markup=False, highlight=False, soft_wrap=True
    )
    return 0

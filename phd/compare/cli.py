"""`phd compare RUN RUN ...`"""

import argparse
from pathlib import Path

from rich.console import Console

from phd.compare.logs import find_runs
from phd.compare.report import group_runs, print_table, summarize, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="a run's --tensorboard-dir, or a folder above several; the first run found is the baseline",
    )
    parser.add_argument(
        "--output",
        metavar="PREFIX",
        type=Path,
        default=Path("comparison"),
        help="write PREFIX.png and PREFIX.json (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the table, write the plot and the numbers.

    Raises:
        FileNotFoundError, ValueError: see :func:`find_runs` and :func:`group_runs`.
    """
    runs = {run.path.resolve(): run for folder in args.runs for run in find_runs(folder)}
    groups = group_runs(list(runs.values()))
    records = summarize(groups)
    # A pipe has no width of its own, and rich would fold the table at 80 columns.
    console = Console()
    print_table(records, console if console.is_terminal else Console(width=140))

    from phd.compare.plot import plot

    png, numbers = (args.output.with_name(args.output.name + end) for end in (".png", ".json"))
    png.parent.mkdir(parents=True, exist_ok=True)
    plot(groups, png)
    write_json(records, numbers)
    console.print(f"Plot: {png}  Numbers: {numbers}", highlight=False, soft_wrap=True)
    return 0

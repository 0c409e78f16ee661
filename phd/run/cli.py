"""`phd status RUN`: how far a run is and how its last start ended, as one line and as an exit code."""

import argparse
from pathlib import Path

from phd.run.record import METRICS_FILE, last_records
from phd.run.status import judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints how far a run is. Exit code 0: finished. 75: not finished, start it again (it was "
        "interrupted, or died after progress). 1: failed in a way that starting again does not mend."
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="a --run-dir of pretrain_phd.py")


def run(args: argparse.Namespace) -> int:
    """Print the line; return the exit code.

    Raises:
        FileNotFoundError, ValueError: see :func:`phd.run.status.judge`.
    """
    code, line = judge(args.run_dir)
    print(f"{args.run_dir}: {line}")
    for record in last_records(args.run_dir / METRICS_FILE):
        numbers = ", ".join(
            f"{name} {value:.6g}" for name, value in record.items() if "loss" in name and value is not None
        )
        print(
            f"  {record['kind']} at iteration {record['iteration']} ({record['tokens']:,} tokens): {numbers}"
        )
    return code

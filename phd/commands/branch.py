"""`phd branch RUN`: continue a checkpoint of a run as several variants, here or by another launcher."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from phd.run.branches import Branch, Trunk, plan
from phd.run.status import FAILED, FINISHED, UNFINISHED, judge

ROOT = Path(__file__).parents[2]
LOG = "log.txt"
"""In the folder of a branch: what its trainings print."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd branch`."""
    parser.description = (
        "Continues one checkpoint of RUN (its weights and Adam's moments) as several variants, each with "
        "every order of the data, while the learning rate falls from the trunk's constant one to 0: runs "
        "that `phd compare` pairs by order. Call it where RUN was started if its flags hold relative paths. "
        "The same command again passes over what is finished and continues what is not. Exit code 75: "
        "something is left to do; 1: a branch has failed."
    )
    parser.add_argument(
        "trunk", metavar="RUN", type=Path, help="the --run-dir of a training at a constant rate"
    )
    parser.add_argument(
        "--variants", nargs="+", required=True, metavar="NAME", help="such as vanilla PHD-CSWA-2-16-32"
    )
    parser.add_argument("--iterations", type=int, required=True, metavar="N", help="of each branch")
    parser.add_argument(
        "--orders",
        nargs="+",
        type=int,
        default=[1],
        metavar="SEED",
        help="a branch of every variant for each: its --seed, which orders the data (default: 1)",
    )
    parser.add_argument(
        "--longest",
        type=int,
        metavar="N",
        help="iterations of the longest branch there will be: shorter ones see the same batches (default: "
        "--iterations)",
    )
    parser.add_argument(
        "--ckpt-step",
        type=int,
        metavar="N",
        help="the trunk's checkpoint of this iteration (default: its newest)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="of the branches, VARIANT-orderSEED (default: RUN-branchN)",
    )
    parser.add_argument(
        "--nproc-per-node",
        type=int,
        metavar="N",
        help="ranks on each of $NNODES (default 1) nodes (default: RUN's in all)",
    )
    parser.add_argument(
        "--print",
        action="store_true",
        dest="only_print",
        help="make the folders, and print for each branch that is not finished the command that starts it",
    )
    parser.add_argument(
        "--flags",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="FLAG",
        help="last: all that follows is for pretrain_phd.py, behind the flags of RUN and of the branch",
    )


def run(args: argparse.Namespace) -> int:
    """Start every branch that is not finished; return the exit code.

    Raises:
        ValueError: the trunk cannot be branched, or the arguments do not fit it; see :mod:`phd.run.branches`.
    """
    script = ROOT / "pretrain_phd.py"
    if not script.exists():
        raise ValueError(f"there is no {script}: call phd from a clone of the repository")
    if args.nproc_per_node is not None and args.nproc_per_node < 1:
        raise ValueError(f"--nproc-per-node {args.nproc_per_node} starts nothing: give 1 or more")
    trunk = Trunk.read(args.trunk, args.ckpt_step)
    path = args.trunk.resolve()
    branches = plan(
        trunk,
        args.variants,
        args.orders,
        iterations=args.iterations,
        longest=args.longest,
        output=args.output or path.with_name(f"{path.name}-branch{args.iterations}"),
    )
    digest, nodes = trunk.digest(), int(os.environ.get("NNODES", "1"))
    codes = []
    for branch in branches:
        if _standing(branch)[0] == FINISHED:
            print(f"{branch.folder}: finished already", file=sys.stderr)
            continue
        exports = {
            "PYTHON": sys.executable,
            "NPROC_PER_NODE": str(args.nproc_per_node or max(1, trunk.world_size // nodes)),
            "RDZV_ID": branch.name,
        }
        command = [str(ROOT / "examples" / "torchrun.sh"), str(script)]
        launcher = branch.prepare(digest, command, args.flags, exports)
        if args.only_print:
            print(f"bash {launcher}")
            continue
        print(f"{branch.folder}: training, see {LOG} there", flush=True)
        stopped = _start(launcher)
        code, line = _standing(branch)
        print(f"{branch.folder}: {line}", flush=True)
        codes.append(code)
        if stopped:
            return UNFINISHED
    return next((code for code in (FAILED, UNFINISHED) if code in codes), FINISHED)


def _standing(branch: Branch) -> tuple[int, str]:
    try:
        return judge(branch.folder)
    except FileNotFoundError:
        return UNFINISHED, f"has not started; {LOG} there says why"


def _start(launcher: Path) -> bool:
    """Run the command to its end; a signal to this process is passed on and ends it early. Returns whether
    there was one. It runs in a session of its own, so that a terminal's signal reaches it once, from here.
    """
    with launcher.with_name(LOG).open("a") as log:
        process = subprocess.Popen(
            ["bash", str(launcher)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    came: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        if not came:
            process.send_signal(number)
        came.append(number)

    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
        signals.append(signal.SIGHUP)
    before = {number: signal.signal(number, hand_on) for number in signals}
    try:
        process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return bool(came)

"""`make branch`: trunks and branches of the study, two at a time, and what they left.

    python -m benchmarks.evidence.run [--minutes 95] [--trunk NAME ...]

Text, trunks and branches lie in runs/evidence; what is to be kept goes to benchmarks/evidence: of a trunk its
record and its last checkpoint, of a branch its record. What is kept is not made again, here or on another
machine: a clone goes on from the trunks that it has. With --minutes what runs is stopped after that time, and
saved; the next call goes on.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.evidence.data import write_corpora
from benchmarks.evidence.study import (
    FIRST_ORDERS,
    LONG,
    PRIMARY,
    TRUNKS,
    VANILLA,
    VOCABULARY,
    Branches,
    Trunk,
    orders_needed,
)
from benchmarks.reproduce import copy_text
from phd.compare.logs import find_runs
from phd.run.files import read_json, write_json
from phd.run.record import BRANCH_FILE, METRICS_FILE, RUN_FILE
from phd.run.status import FINISHED, STATUS_FILE, judge, newest_checkpoint

ROOT = Path(__file__).parents[2]
WORK = Path("runs/evidence")
"""Below ROOT: command lines that are kept hold no path of this machine."""
KEPT = ROOT / "benchmarks" / "evidence"
RECORD = (RUN_FILE, METRICS_FILE, "starts.jsonl", STATUS_FILE, BRANCH_FILE)
PYTHON = os.path.relpath(sys.executable, ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long")
    parser.add_argument(
        "--trunk",
        choices=[trunk.name for trunk in TRUNKS],
        nargs="+",
        help="these alone (default: all)",
        default=[trunk.name for trunk in TRUNKS],
    )
    args = parser.parse_args()
    prepare_text()
    study = Study(until=None if args.minutes is None else time.monotonic() + 60 * args.minutes)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, study.stop)
    trunks = [trunk for trunk in TRUNKS if trunk.name in args.trunk]
    grown = [trunk for trunk in trunks if is_grown(trunk)]
    # what the primary hypotheses need comes first, of all trunks, beside a trunk that is still to grow
    study.together([*(partial(study.grow, trunk) for trunk in trunks), *study.first_branches(grown)])
    grown = [trunk for trunk in trunks if is_grown(trunk)]
    study.together(study.first_branches(grown))
    study.together([call for trunk in grown for call in study.branches(trunk, FIRST_ORDERS)])
    study.together([call for trunk in grown for call in study.branches(trunk, more_orders(trunk))])
    print("out of time: run it again to go on" if study.out_of_time else "all done", flush=True)
    return 0


@dataclass
class Study:
    """Calls that take long, two at a time, until the time is up."""

    until: float | None
    out_of_time: bool = field(default=False, init=False)
    running: set[subprocess.Popen[bytes]] = field(default_factory=set, init=False)

    def stop(self, *_: object) -> None:
        """A signal's handler: what runs is stopped, and saved."""
        self.out_of_time, self.until = True, time.monotonic()
        for process in list(self.running):
            process.terminate()

    def together(self, calls: Sequence[Callable[[], None]]) -> None:
        """Call them, two at a time; the first that fails ends the study when the other has ended."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            for done in [pool.submit(self._in_time, call) for call in calls]:
                done.result()

    def _in_time(self, call: Callable[[], None]) -> None:
        if self._seconds_left() == 0:
            self.out_of_time = True
        if not self.out_of_time:
            call()

    def _seconds_left(self) -> float | None:
        return None if self.until is None else max(0.0, self.until - time.monotonic())

    def grow(self, trunk: Trunk) -> None:
        """Train a trunk, or take the one that is kept."""
        folder, kept = WORK / "trunks" / trunk.name, KEPT / "trunks" / trunk.name
        if not folder.exists() and kept.exists():
            shutil.copytree(kept, folder)
        if kept.exists():
            return
        if not self.train(on_trunk_text(trunk, folder), folder):
            return
        keep(folder, kept)
        last = f"iter_{newest_checkpoint(folder / 'checkpoints'):07d}"
        shutil.copytree(folder / "checkpoints" / last, kept / "checkpoints" / last)
        shutil.copy(folder / "checkpoints" / "latest_checkpointed_iteration.txt", kept / "checkpoints")

    def first_branches(self, trunks: Sequence[Trunk]) -> list[Callable[[], None]]:
        """Calls that train the first orders of the primary comparison, of each of these trunks."""
        return [
            call for trunk in trunks for call in self.branches(trunk, FIRST_ORDERS, primary_comparison(trunk))
        ]

    def branches(
        self, trunk: Trunk, orders: Sequence[int], arms: Sequence[Branches] | None = None
    ) -> list[Callable[[], None]]:
        """Calls that train the branches of these orders that are not kept; of all arms without ``arms``."""
        return [
            partial(self._branch, trunk, branches, order)
            for order in orders
            for branches in (trunk.branches if arms is None else arms)
            if not (KEPT / "runs" / record_name(trunk, branches, order)).exists()
        ]

    def _branch(self, trunk: Trunk, branches: Branches, order: int) -> None:
        output = WORK / "branches" / trunk.name / f"{branches.share:g}-{branches.arm}"
        folder = output / f"{branches.variant}-order{order}"
        command = [
            *(PYTHON, "-m", "phd.commands.cli", "branch", str(WORK / "trunks" / trunk.name)),
            *("--variants", branches.variant, "--orders", str(order), "--nproc-per-node", "1"),
            *("--iterations", str(branches.iterations), "--longest", str(trunk.longest)),
            *("--output", str(output), "--flags", "--data-path", str(WORK / "branch-text"), *branches.flags),
        ]
        if self.train(command, folder):
            keep(folder, KEPT / "runs" / record_name(trunk, branches, order))
            shutil.rmtree(folder / "checkpoints")

    def train(self, command: Sequence[str], folder: Path) -> bool:
        """Train on one core; what it prints goes to a file beside the folder. False where time was up first.

        Raises:
            RuntimeError: it failed.
        """
        print(f"{folder}: training", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NPROC_PER_NODE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        environment |= {"PYTHON": PYTHON}
        with folder.with_name(f"{folder.name}.log").open("a") as log:
            # in a session of its own: a terminal's signal comes to it once, from here
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            self.running.add(process)
            try:
                process.wait(self._seconds_left())
            except subprocess.TimeoutExpired:
                self.stop()
                process.wait()
            finally:
                self.running.remove(process)
        code, line = judge(folder)
        print(f"{folder}: {line}", flush=True)
        if code != FINISHED and not self.out_of_time:
            raise RuntimeError(f"{folder}: {line}; see {log.name}")
        return code == FINISHED


def on_trunk_text(trunk: Trunk, folder: Path, *flags: str) -> list[str]:
    """The command that trains a trunk's model in ``folder``; ``flags`` win over the trunk's."""
    ours = trunk.flags(str(WORK / "tokenizer.model"), str(WORK / "trunk-text"))
    return ["examples/torchrun.sh", "pretrain_phd.py", *ours, *flags, "--run-dir", str(folder)]


def record_name(trunk: Trunk, branches: Branches, order: int) -> str:
    return f"{trunk.name}/{branches.share:g}/{branches.arm}-order{order}"


def is_grown(trunk: Trunk) -> bool:
    return (KEPT / "trunks" / trunk.name).exists()


def primary_comparison(trunk: Trunk) -> list[Branches]:
    return [each for each in trunk.branches if each.share == LONG and each.arm in (VANILLA, PRIMARY)]


def more_orders(trunk: Trunk) -> list[int]:
    """Orders beyond the first ones, by the rule of the study; none before all of those are kept."""
    losses = []
    for order in FIRST_ORDERS:
        of_order = []
        for branches in primary_comparison(trunk):
            folder = KEPT / "runs" / record_name(trunk, branches, order)
            if not folder.exists():
                return []
            of_order.append(validation_loss(folder))
        losses.append(of_order)
    needed = orders_needed([ours - vanilla for vanilla, ours in losses])
    return list(range(len(FIRST_ORDERS) + 1, needed + 1))


def validation_loss(folder: Path) -> float:
    """The last one of a kept run."""
    (run,) = find_runs(folder)
    loss = run.final_validation_loss
    assert loss is not None, folder
    return loss


def keep(folder: Path, target: Path) -> None:
    """Copy a run's record, without the paths of this machine, whole or not at all. Of its iterations every
    tenth is kept.
    """
    temporary = target.with_name(f".{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in RECORD:
        if (folder / name).exists():
            copy_text(folder / name, temporary, ROOT / WORK)
    thin(temporary / METRICS_FILE)
    temporary.rename(target)


def thin(metrics: Path) -> None:
    """Of its training lines leave every tenth and the last one."""
    lines = [(json.loads(line), line) for line in metrics.read_text().splitlines(keepends=True)]
    last = max(line["iteration"] for line, _ in lines)
    kept = [
        text
        for line, text in lines
        if line["kind"] != "train" or line["iteration"] % 10 == 0 or line["iteration"] == last
    ]
    metrics.write_text("".join(kept))


def prepare_text() -> None:
    """Corpora, tokenizer and data sets below ROOT, from where all is run then; refuses text that is not that
    of what is kept.
    """
    os.chdir(ROOT)
    WORK.mkdir(parents=True, exist_ok=True)
    corpora = {name: WORK / f"{name}-text.jsonl" for name in ("trunk", "branch")}
    if not all(corpus.exists() for corpus in corpora.values()):
        write_corpora(corpora["trunk"], corpora["branch"])
    tokenizer, phd = WORK / "tokenizer.model", [PYTHON, "-m", "phd.commands.cli", "data"]
    if not tokenizer.exists():
        command = ["train-tokenizer", "--input", str(corpora["trunk"]), "--vocab-size", str(VOCABULARY)]
        subprocess.run([*phd, *command, "--output-prefix", str(tokenizer.with_suffix(""))], check=True)
    for corpus in corpora.values():
        command = ["tokenize", "--input", str(corpus), "--tokenizer-model", str(tokenizer), "--append-eod"]
        subprocess.run([*phd, *command, "--output-prefix", str(corpus.with_suffix(""))], check=True)
    digests = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (tokenizer, *(corpus.with_suffix(".bin") for corpus in corpora.values()))
    }
    kept = KEPT / "text.json"
    if (before := read_json(kept)) and before != digests:
        raise SystemExit(
            f"the text is not that of {kept.relative_to(ROOT)}: other versions of the packages that it is "
            "made of are installed; set the environment up from constraints-cpu.txt"
        )
    write_json(kept, digests)


if __name__ == "__main__":
    sys.exit(main())

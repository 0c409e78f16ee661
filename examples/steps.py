"""Steps of the walkthroughs in examples/: headings, the phd command, trainings with a progress bar."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from phd.run.status import newest_checkpoint

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (
    "--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear "
    "--attention-dropout 0 --hidden-dropout 0"
)
"""Llama's."""
console = Console(highlight=False, soft_wrap=True)


def step(title: str) -> None:
    console.print(f"\n[bold]== {title}[/bold]")


def phd(*arguments: Any) -> None:
    """Call the phd command, as a user would."""
    command = [sys.executable, "-m", "phd.commands.cli", *map(str, arguments)]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"}).returncode:
        raise SystemExit(f"failed: {shlex.join(command)}")


def open_folder(story: str, mode: str, settings: object) -> Path:
    """The folder named by STORY_FOLDER, or one of runs/ for this walkthrough and mode; never one made with
    other settings.
    """
    default = ROOT / "runs" / f"{story.lower()}{mode and '-'}{mode}"
    folder = Path(os.environ.get(f"{story}_FOLDER", default)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / "settings.txt", repr(settings)
    if file.exists() and file.read_text() != text:
        raise SystemExit(f"{folder} was made with other settings: remove it to start afresh")
    file.write_text(text)
    return folder


def unless_interrupted(main: Callable[[], int]) -> int:
    """Exit status of ``main``, and of Ctrl-C."""
    try:
        return main()
    except KeyboardInterrupt:
        console.print("\ninterrupted; the same command continues from here")
        return 130


def train(run: Path, iterations: int, flags: Sequence[str]) -> None:
    """Run pretrain_phd.py until it is done, from its newest checkpoint if there is one."""
    done = run / "done.json"
    if done.exists():
        console.print("already done")
        return
    pretrain(run, iterations, flags)
    done.write_text(json.dumps({"iterations": iterations}))


def pretrain(run: Path, iterations: int, flags: Sequence[str]) -> None:
    """One start of torchrun with two ranks on the CPU, and a progress bar made from Megatron's log lines; all
    of them go to log.txt.
    """
    run.mkdir(exist_ok=True)
    log = run / "log.txt"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("--local-addr", "127.0.0.1"),  # a laptop's own name may lead nowhere, and it would wait for minutes
        *(str(ROOT / "pretrain_phd.py"), *ARCHITECTURE.split(), *flags),
        *("--log-interval", "1", "--run-dir", str(run), "--train-iters", str(iterations)),
    ]
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("step {task.completed}/{task.total}"),
        TextColumn("{task.fields[loss]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    begin = newest_checkpoint(run / "checkpoints")
    # the same training on every machine; two ranks on one GPU would fail
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "a") as file, Progress(*columns, console=console) as progress:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
        task = progress.add_task("starting", total=iterations, completed=begin, loss="(Megatron loads)")
        try:
            for line in process.stdout or ():
                file.write(line)
                if match := re.search(r"iteration +(\d+)/.*lm loss: (\S+)", line):
                    loss = f"loss {float(match[2]):.3f}"
                    progress.update(task, description="training", completed=int(match[1]), loss=loss)
            failed = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if failed:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:])
        raise SystemExit(f"{tail}\n{run.name} failed; its whole log: {log}")

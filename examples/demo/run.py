"""`make demo`: the whole story on one machine without a GPU, from text to a comparison of trained models.

corpus -> tokenizer -> Megatron data set -> vanilla and PHD pretrained on the same batches with torchrun and
pretrain_phd.py (one of them stopped half-way and resumed) -> loss table, plot, and a sentence by each model.

Interrupt it at will: run again, it continues where it stopped. DEMO=full adds PHD-CSWA-3-16-32 and a second
seed.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from examples.demo.corpus import write_corpus

ROOT = Path(__file__).parents[2]
MODES = ("", "full", "tiny")
PROMPT = "The king shall"
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Settings:
    """Fixed before anything is trained, and the same for every model."""

    vocab_size: int = 2048
    iterations: int = 300
    seeds: tuple[int, ...] = (1,)
    model: str = (
        "--num-layers 4 --hidden-size 128 --ffn-hidden-size 352 --num-attention-heads 4 "
        "--group-query-attention --num-query-groups 2 --seq-length 128 --max-position-embeddings 128"
    )
    training: str = (
        "--micro-batch-size 16 --global-batch-size 32 --lr 3e-3 --min-lr 0 --lr-decay-style cosine "
        "--lr-warmup-fraction 0.1 --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --init-method-std 0.02"
    )
    evaluation: str = "--eval-interval 100 --eval-iters 20"
    save_interval: int = 50


@dataclass(frozen=True)
class Run:
    """One training: a variant, a seed and how long."""

    name: str
    phd_flags: str
    seed: int
    iterations: int
    stop_half_way: bool = False


def choose(mode: str) -> Settings:
    """The settings of a mode. ``tiny`` is for the test: real steps, no result."""
    if mode == "full":
        return Settings(seeds=(1, 2))
    if mode == "tiny":
        model = Settings.model.replace("hidden-size 128", "hidden-size 32").replace("352", "64")
        return Settings(
            vocab_size=400,
            iterations=8,
            model=model,
            evaluation="--eval-interval 4 --eval-iters 1",
            save_interval=4,
        )
    return Settings()


def plan(settings: Settings, mode: str) -> list[Run]:
    """All trainings, baseline first: of each seed vanilla, PHD, and vanilla given PHD's FLOPs."""
    variants = [("vanilla", "", 1), ("PHD-CSWA-2-16-32", "--phd-copies 2", 1)]
    if mode == "full":
        variants.append(("PHD-CSWA-3-16-32", "--phd-copies 3", 1))
    if mode != "tiny":
        variants.append(("vanilla-2x-steps", "", 2))
    return [
        Run(f"{number}-{name}-seed{seed}", flags, seed, factor * settings.iterations, "CSWA-2" in name)
        for number, (name, flags, factor) in enumerate(variants, start=1)
        for seed in settings.seeds
    ]


def main() -> int:
    mode = os.environ.get("DEMO", "")
    if mode not in MODES:
        console.print(f"DEMO={mode} is not known: leave it out, or use DEMO=full")
        return 2
    settings = choose(mode)
    folder = Path(os.environ.get("DEMO_FOLDER", ROOT / "runs" / f"demo{mode and '-'}{mode}")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    keep_settings(folder, settings)

    step("Corpus")
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        source = write_corpus(corpus, tiny=mode == "tiny")
        (folder / "source.txt").write_text(source)
    works = corpus.read_bytes().count(b"\n")
    console.print(
        f"{works} works, {corpus.stat().st_size / 1e6:.1f} MB: {(folder / 'source.txt').read_text()}"
    )

    step("Tokenizer and data set")
    tokenizer, data = folder / "tokenizer.model", folder / "text"
    if not tokenizer.exists():
        phd("data", "train-tokenizer", "--input", corpus, "--output-prefix", folder / "tokenizer",
            "--vocab-size", settings.vocab_size)  # fmt: skip
    phd("data", "tokenize", "--input", corpus, "--output-prefix", data, "--tokenizer-model", tokenizer,
        "--append-eod")  # fmt: skip

    runs = plan(settings, mode)
    for run in runs:
        step(f"Pretrain {run.name}")
        train(run, settings, folder)

    step("Compare")
    runs_differ = ["--vary", "train-iters"] if len({run.iterations for run in runs}) > 1 else []
    phd("compare", *(folder / run.name for run in runs), *runs_differ, "--output", folder / "comparison")
    for run in runs:
        step(f"Generate with {run.name}")
        phd("generate", folder / run.name / "checkpoints", "--prompt", PROMPT, "--max-new-tokens", 40)
    console.print(f"\n[bold]Plot:[/bold] {folder / 'comparison.png'}\n[bold]Everything else:[/bold] {folder}")
    return 0


def train(run: Run, settings: Settings, folder: Path) -> None:
    """Run pretrain_phd.py until it is done, from its newest checkpoint if there is one."""
    done = folder / run.name / "done.json"
    if done.exists():
        console.print("already done")
        return
    log = folder / run.name / "log.txt"
    log.parent.mkdir(exist_ok=True)
    if run.stop_half_way and last_checkpoint(run, folder) < run.iterations // 2:
        pretrain(run, settings, folder, log, ["--exit-interval", str(run.iterations // 2)])
        console.print(
            f"stopped at step {last_checkpoint(run, folder)} on purpose; resuming from its checkpoint"
        )
    pretrain(run, settings, folder, log, [])
    done.write_text(json.dumps({"iterations": run.iterations}))


def last_checkpoint(run: Run, folder: Path) -> int:
    tracker = folder / run.name / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text()) if tracker.exists() else 0


def pretrain(run: Run, settings: Settings, folder: Path, log: Path, more: list[str]) -> None:
    """One start of torchrun, with a progress bar made from Megatron's log lines; all of them go to a file."""
    where = folder / run.name
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        str(ROOT / "pretrain_phd.py"),
        *shlex.split(f"{settings.model} {settings.training} {settings.evaluation} {run.phd_flags}"),
        *shlex.split("--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear"),
        *shlex.split("--attention-dropout 0 --hidden-dropout 0 --log-interval 1"),
        *("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(folder / "tokenizer.model")),
        *("--data-path", str(folder / "text"), "--split", "90,10,0"),
        *("--run-dir", str(where), "--seed", str(run.seed)),
        *("--train-iters", str(run.iterations), "--save-interval", str(settings.save_interval)),
        *more,
    ]
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("step {task.completed}/{task.total}"),
        TextColumn("{task.fields[loss]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with open(log, "a") as file, Progress(*columns, console=console) as progress:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        task = progress.add_task(
            "starting", total=run.iterations, completed=last_checkpoint(run, folder), loss="(Megatron loads)"
        )
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


def phd(*arguments: Any) -> None:
    """Call the phd command, as a user would."""
    command = [sys.executable, "-m", "phd.cli", *map(str, arguments)]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"}).returncode:
        raise SystemExit(f"failed: {shlex.join(command)}")


def keep_settings(folder: Path, settings: Settings) -> None:
    """Refuse to mix what was made with other settings."""
    file, text = folder / "settings.txt", repr(settings)
    if file.exists() and file.read_text() != text:
        raise SystemExit(f"{folder} was made with other settings: remove it to start afresh")
    file.write_text(text)


def step(title: str) -> None:
    console.print(f"\n[bold]== {title}[/bold]")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        console.print("\ninterrupted; the same command continues from here")
        sys.exit(130)

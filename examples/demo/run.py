"""`make demo`: a walkthrough on one machine without a GPU, from text to a comparison of trained models.

corpus -> tokenizer -> Megatron data set -> vanilla and PHD pretrained on the same batches with torchrun and
pretrain_phd.py (one of them stopped half-way and resumed) -> loss table, plot, and a sentence by each model.

Interrupt it at will: run again, it continues where it stopped. DEMO=full adds PHD-CSWA-3-16-32 and a second
seed.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from examples import steps
from examples.demo.corpus import write_corpus
from examples.steps import console, open_folder, phd, step, unless_interrupted
from phd.run.status import newest_checkpoint

MODES = ("", "full", "tiny")
PROMPT = "The king shall"


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
    folder = open_folder("DEMO", mode, settings)

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
    """Train until it is done; the one that stops half-way does so the first time that it gets there."""
    where = folder / run.name
    flags = [
        *shlex.split(f"{settings.model} {settings.training} {settings.evaluation} {run.phd_flags}"),
        *("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(folder / "tokenizer.model")),
        *("--data-path", str(folder / "text"), "--split", "90,10,0"),
        *("--seed", str(run.seed), "--save-interval", str(settings.save_interval)),
    ]
    checkpoints, half = where / "checkpoints", run.iterations // 2
    if run.stop_half_way and newest_checkpoint(checkpoints) < half:
        steps.pretrain(where, run.iterations, [*flags, "--exit-interval", str(half)])
        console.print(
            f"stopped at step {newest_checkpoint(checkpoints)} on purpose; resuming from its checkpoint"
        )
    steps.train(where, run.iterations, flags)


if __name__ == "__main__":
    sys.exit(unless_interrupted(main))

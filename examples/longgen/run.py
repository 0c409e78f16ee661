"""`make longgen`: LongGen's experiment (arXiv 2410.01485) with a model that a laptop trains.

A model of 1.3 million parameters is pretrained on samples of 256 tokens with full attention. From its
weights three are trained on: with full attention, and as hybrids, a third of their layers full, the first and
the last third sparse (sinks and a window, or strided blocks). At 256 tokens again, where sparse layers keep
48 positions, then at 4096, where they keep 144. All of them then look for a needle in 4096 tokens of text
that no training saw; and so does the full model with a window of 144 positions put on at inference only,
without and with a sink.

Why at 256 again: the pretrained model looks back in its last layers, which the hybrids' patterns forbid. They
have to learn to do it in the middle, and short samples full of questions teach it in minutes.

Interrupt it at will: run again, it continues where it stopped.
"""

import json
import os
import platform
import random
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table

from examples.demo.corpus import write_corpus
from examples.longgen.needles import asked_needles, drill_document, needle_document, needle_keys
from examples.steps import console, open_folder, phd, step, train, unless_interrupted
from phd.evaluation.grid import draw_grid
from phd.evaluation.haystack import Haystack
from phd.run.files import write_json, write_text

MODES = ("", "tiny")
HYBRIDS = ("longgen-sink", "longgen-block")
BLOCK, BUDGET = 16, 9
"""Positions in a block, and the blocks that a sparse layer keeps of 4096 positions."""
HELD_OUT = 4
"""Works of the corpus that are for the evaluation alone."""


@dataclass(frozen=True)
class Stage:
    """Samples of one length, and a training on them."""

    name: str
    length: int
    documents: int
    """Of so many tokens each."""
    needles: int
    """At most so many in a document."""
    drills: float
    """Share of the documents that are drills instead."""
    iterations: int
    training: str
    budget: int = 0
    """Blocks that sparse layers keep."""

    def pattern_flags(self, pattern: str) -> list[str]:
        """Sinks and a window of ``budget`` blocks, or half of them strided."""
        local = (self.budget + 1) // 2
        stride = self.length // BLOCK // (self.budget - local)
        numbers = {
            "full": "",
            "longgen-sink": f".{BLOCK}.1.{self.budget - 1}",
            "longgen-block": f".{BLOCK}.{stride}.{local}",
        }
        return ["--attention-pattern", pattern + numbers[pattern]]


@dataclass(frozen=True)
class Settings:
    """Fixed before anything is trained, and the same for every model."""

    vocab_size: int = 1024
    model: str = (
        "--num-layers 6 --hidden-size 128 --ffn-hidden-size 352 --num-attention-heads 4 "
        "--max-position-embeddings 4096 --init-method-std 0.1"
    )
    training: str = (
        "--min-lr 0 --lr-decay-style cosine --lr-warmup-fraction 0.05 --weight-decay 0.1 --adam-beta2 0.98 "
        "--clip-grad 1.0 --split 98,2,0 --eval-interval 200 --eval-iters 2 "
        "--dataloader-inter-document-masking"  # a sample is a document; and full attention is then flash too
    )
    drill: Stage = Stage(
        "64", 64, 16000, 0, 1.0, 1000, "--micro-batch-size 8 --global-batch-size 16 --lr 3e-3"
    )
    short: Stage = Stage(
        "256", 256, 16500, 4, 0.3, 2000, "--micro-batch-size 4 --global-batch-size 8 --lr 3e-3"
    )
    again: Stage = Stage(
        *("256-again", 256, 5000, 4, 0.6, 600),
        "--micro-batch-size 4 --global-batch-size 8 --lr 3e-3 --rotary-base 500000",
        budget=3,
    )
    long: Stage = Stage(
        *("4096", 4096, 850, 80, 0.0, 300),
        "--micro-batch-size 1 --global-batch-size 2 --lr 2e-3 --rotary-base 500000",
        budget=BUDGET,
    )
    patterns: tuple[str, ...] = ("full", *HYBRIDS)
    """Of the layers of the models that are extended."""
    lengths: str = "256,1024,4096"
    prompts: int = 10
    """Of each length and depth."""
    save_interval: int = 100


@dataclass(frozen=True)
class Evaluated:
    """A trained model, and the layers that it is evaluated with."""

    name: str
    run: str
    sink: int | None = None
    """At inference all layers keep so many first blocks, and of the last as many as fill the budget."""


EVALUATED = (
    Evaluated("full attention, before the extension", "2-pretrain"),
    Evaluated("full attention", "4-full"),
    *(Evaluated(name, f"4-{name}") for name in HYBRIDS),
    Evaluated("full; sliding window at inference", "4-full", sink=0),
    Evaluated("full; attention sink at inference", "4-full", sink=1),
)


def choose(mode: str) -> Settings:
    """The settings of a mode. ``tiny`` is for the test: real steps, no result."""
    if mode == "tiny":
        return Settings(
            vocab_size=400,
            model=Settings.model.replace("hidden-size 128", "hidden-size 32").replace("352", "64"),
            drill=replace(Settings.drill, documents=120, iterations=2),
            short=replace(Settings.short, documents=120, needles=1, iterations=2),
            again=replace(Settings.again, documents=120, needles=1, iterations=2),
            long=replace(Settings.long, name="512", length=512, documents=120, needles=2, iterations=2),
            patterns=HYBRIDS[:1],
            lengths="256,512",
            prompts=1,
            save_interval=2,
        )
    return Settings()


def main() -> int:
    mode = os.environ.get("LONGGEN", "")
    if mode not in MODES:
        console.print(f"LONGGEN={mode} is not known: leave it out")
        return 2
    settings = choose(mode)
    folder = open_folder("LONGGEN", mode, settings)

    step("Corpus and tokenizer")
    prepare_text(folder, settings, tiny=mode == "tiny")
    for stage in (settings.drill, settings.short, settings.again, settings.long):
        step(f"Documents of {stage.length} tokens with needles")
        prepare_documents(stage, folder)

    step(f"Drill at {settings.drill.length} tokens")
    drilled = folder / "1-drill"
    train(drilled, settings.drill.iterations, flags_of(settings.drill, settings, folder))
    step(f"Pretrain at {settings.short.length} tokens")
    pretrained = folder / "2-pretrain"
    train(pretrained, settings.short.iterations, flags_of(settings.short, settings, folder, drilled))
    for pattern in settings.patterns:
        start = pretrained
        for number, stage in enumerate((settings.again, settings.long), start=3):
            step(f"Train on at {stage.length} tokens: {pattern}")
            flags = [*flags_of(stage, settings, folder, start), *stage.pattern_flags(pattern)]
            start = folder / f"{number}-{pattern}"
            train(start, stage.iterations, flags)

    grids = {}
    for evaluated in EVALUATED:
        if not (folder / evaluated.run).exists():
            continue
        step(f"Needle in a haystack: {evaluated.name}")
        grids[evaluated.name] = evaluate(evaluated, settings, folder)
    report(grids, settings, folder)
    return 0


def prepare_text(folder: Path, settings: Settings, tiny: bool) -> None:
    """corpus.jsonl for training, held-out.jsonl, and a tokenizer that has seen questions too."""
    if not (folder / "held-out.jsonl").exists():
        whole = folder / "whole.jsonl"
        source = write_corpus(whole, tiny)
        works = whole.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(folder / "corpus.jsonl", "".join(works[:-HELD_OUT]))
        write_text(folder / "held-out.jsonl", "".join(works[-HELD_OUT:]))
        whole.unlink()
        console.print(f"{len(works)} works, the last {HELD_OUT} held out: {source}")
    if not (folder / "tokenizer.model").exists():
        questions = asked_needles(random.Random(0), count=3000)
        write_text(folder / "questions.jsonl", "".join(map(as_line, questions)))
        phd("data", "train-tokenizer", "--input", folder / "corpus.jsonl", folder / "questions.jsonl",
            "--output-prefix", folder / "tokenizer", "--vocab-size", settings.vocab_size)  # fmt: skip


def as_line(text: str) -> str:
    return json.dumps({"text": text}) + "\n"


def prepare_documents(stage: Stage, folder: Path) -> None:
    """The stage's documents as a Megatron data set, each with its end token as long as a sample."""
    documents, tokenizer = folder / f"documents-{stage.name}.jsonl", folder / "tokenizer.model"
    if not documents.exists():
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        haystack = Haystack(folder / "corpus.jsonl", pieces.encode, pieces.unk_id(), longest=1 << 24)
        keys = needle_keys(haystack)
        lines = []
        for number in track(range(stage.documents), "writing", console=console):
            draw = random.Random(f"{stage.name} {number}")
            if draw.random() < stage.drills:
                text = drill_document(haystack, stage.length - 1, draw)
            else:
                needles = draw.randint(1, stage.needles)
                text = needle_document(haystack, stage.length - 1, keys, needles, draw)
            lines.append(as_line(text))
        write_text(documents, "".join(lines))
    phd("data", "tokenize", "--input", documents, "--output-prefix", documents.with_suffix(""),
        "--tokenizer-model", tokenizer, "--append-eod")  # fmt: skip


def flags_of(stage: Stage, settings: Settings, folder: Path, start: Path | None = None) -> list[str]:
    """Of a training, from the weights of the run ``start`` if there is one."""
    weights = []
    if start is not None:
        weights = ["--pretrained-checkpoint", str(start / "checkpoints"), "--override-phd-variant"]
    return [
        *shlex.split(f"{settings.model} {settings.training} {stage.training}"),
        *("--seq-length", str(stage.length), "--save-interval", str(settings.save_interval)),
        *("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(folder / "tokenizer.model")),
        *("--data-path", str(folder / f"documents-{stage.name}")),
        *weights,
    ]


def evaluate(evaluated: Evaluated, settings: Settings, folder: Path) -> dict[str, Any]:
    """The needle's grid: accuracies of depths x lengths."""
    output = folder / f"needle-{EVALUATED.index(evaluated)}.json"
    if not output.exists():
        flags: list[Any] = []
        if evaluated.sink is not None:
            pattern = f"sink.{BLOCK}.{evaluated.sink}.{BUDGET - evaluated.sink}"
            flags = ["--attention-pattern", pattern]
        phd("eval", folder / evaluated.run / "checkpoints", "--tasks", "phd_needle",
            "--corpus", folder / "held-out.jsonl", "--lengths", settings.lengths,
            "--limit", settings.prompts, "--batch-size", 1, *flags, "--output", output)  # fmt: skip
    grid: dict[str, Any] = json.loads(output.read_text())["grids"][0]
    return grid


def report(grids: dict[str, dict[str, Any]], settings: Settings, folder: Path) -> None:
    """One table, needle.json and needle.png."""
    lengths = next(iter(grids.values()))["lengths"]
    table = Table("model", *(f"{length:,} tokens" for length in lengths), title="needles found, all depths")
    means = {}
    for name, grid in grids.items():
        columns = zip(*grid["accuracy"], strict=True)
        means[name] = [sum(column) / len(column) for column in columns]
        table.add_row(name, *(f"{mean:.0%}" for mean in means[name]))
    console.print(table)
    content = {
        "command": "make longgen",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}",
        "settings": asdict(settings),
        "means": means,
        "grids": grids,
    }
    write_json(folder / "needle.json", content)
    rows = -(-len(grids) // 3)
    figure = Figure(figsize=(4.2 * 3, 3.1 * rows), layout="constrained")
    for place, (name, grid) in enumerate(grids.items(), start=1):
        draw_grid(figure.add_subplot(rows, 3, place), grid, name)
    figure.savefig(folder / "needle.png", dpi=110)
    console.print(
        f"\n[bold]Heat maps:[/bold] {folder / 'needle.png'}\n[bold]Everything else:[/bold] {folder}"
    )


if __name__ == "__main__":
    sys.exit(unless_interrupted(main))

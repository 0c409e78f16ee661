"""`make longcontext`: what systems for longer contexts give one small model, from 256 tokens to 4096.

All start from the model that `make longgen` pretrains at 256 tokens with full attention, which is kept beside
this file; with the one that it trains on at 4096 they make the first and the last row of the table. Trained
systems read the same number of tokens, three times, with other seeds. Each is then asked for needles in
text that no training saw, and for the loss of it by position, at one to sixteen times the length.

Interrupt it at will: run again, it continues where it stopped.
"""

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table

from examples.longgen.run import Settings as LongGen
from examples.longgen.run import Stage, flags_of, prepare_documents, prepare_text
from examples.steps import console, open_folder, phd, step, train, unless_interrupted
from phd.commands.rope_base import dynamic_ntk_base
from phd.run.files import write_json

MODES = ("", "tiny")
KEPT = Path(__file__).parent / "models"
CONTEXT, TARGET, HEAD = 256, 4096, 32
"""Tokens that the model was trained with, and is to read; dimensions of its heads."""
SHORT_SHARE = 0.4
"""Of ProLong's tokens: it keeps so much of short documents beside the long ones."""


@dataclass(frozen=True)
class Settings:
    """Fixed before anything is trained, and the same for every system."""

    longgen: LongGen = LongGen()
    target: int = TARGET
    short: Stage = Stage(
        "256-again", CONTEXT, 5000, 4, 0.6, 300, "--micro-batch-size 4 --global-batch-size 8"
    )
    """Documents of the old length. All trained systems read as many tokens as its training."""
    condensed: Stage = Stage("1024", 1024, 2400, 8, 0.3, 300, "--micro-batch-size 4 --global-batch-size 8")
    """Documents that LongRecipe makes shorter."""
    replayed: int = 30
    """Of LongRecipe's iterations, those of old text at a tenth of the rate."""
    long: Stage = Stage("4096", TARGET, 850, 80, 0.0, 37, "--micro-batch-size 1 --global-batch-size 2")
    """ProLong's second half; its first half is of pieces of it, a quarter as long."""
    pieces: Stage = Stage("pieces", TARGET // 4, 0, 0, 0.0, 75, "--micro-batch-size 2 --global-batch-size 4")
    lr: str = "1e-3"
    seeds: tuple[int, ...] = (1, 2, 3)
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    prompts: int = 10
    """Of each length and depth."""
    texts: int = 16
    """Pieces of text that the loss is measured on."""


def choose(mode: str) -> Settings:
    """The settings of a mode. ``tiny`` is for the test: real steps, no result."""
    plain = Settings()
    if mode == "tiny":
        return replace(
            plain,
            target=512,
            short=replace(plain.short, documents=60, iterations=2),
            condensed=replace(plain.condensed, documents=60, iterations=2),
            replayed=1,
            long=replace(plain.long, name="512", length=512, documents=60, needles=2, iterations=2),
            pieces=replace(plain.pieces, length=128, iterations=2),
            seeds=(1,),
            lengths=(256, 512),
            prompts=1,
            texts=2,
        )
    return plain


@dataclass(frozen=True)
class Model:
    """What is evaluated: a folder or a checkpoint, and flags of `phd eval`."""

    path: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Story:
    """Where all lies, and the trainings of the systems."""

    folder: Path
    settings: Settings

    @property
    def base(self) -> int:
        """The base of the rotary angles for the longest context."""
        return round(dynamic_ntk_base(10000, CONTEXT, self.settings.target, HEAD))

    @property
    def long_positions(self) -> str:
        return f"--max-position-embeddings {self.settings.target} --rotary-base {self.base}"

    def train(self, name: str, stage: Stage, seed: int, flags: str, start: Path | None = None) -> Path:
        """A training of ``stage``, from ``start`` or the pretrained model. Returns its run folder."""
        step(f"Train: {name}, seed {seed}")
        run = self.folder / f"{name}-seed{seed}"
        longgen = self.settings.longgen
        given = flags_of(stage, longgen, self.folder, start or self.folder / "start")
        # as the imported model has it: the same ids as of tokenizer.model
        tokenizer = self.folder / "start" / "checkpoints" / "tokenizer"
        given += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer)]
        train(run, stage.iterations, [*given, "--seed", str(seed), *shlex.split(flags)])
        return run

    def rate(self, lr: str | None = None) -> str:
        return f"--lr {lr or self.settings.lr}"

    def edited(self, name: str, context: int, base: float | None = None) -> Path:
        """The pretrained model with another context, and another base of the rotary angles, in its config."""
        target = self.folder / name
        if not target.exists():
            temporary = target.with_name(f".{name}")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(KEPT / "pretrained", temporary)
            config = json.loads((temporary / "config.json").read_text())
            config["max_position_embeddings"] = context
            if base is not None:
                config["rope_theta"] = config["rope_parameters"]["rope_theta"] = base
            write_json(temporary / "config.json", config)
            temporary.rename(target)
        return target


def plain(story: Story, _: int) -> Model:
    return Model(story.edited("plain", story.settings.target))


def interpolated(story: Story, _: int) -> Model:
    return Model(KEPT / "pretrained", ("--rope-scale", "auto"))


def other_base(story: Story, _: int) -> Model:
    return Model(story.edited("base", story.settings.target, float(story.base)))


def trained_on(story: Story, seed: int) -> Model:
    flags = f"{story.rate()} --max-position-embeddings {CONTEXT}"
    run = story.train("trained-on", story.settings.short, seed, flags)
    return Model(run / "checkpoints", ("--rope-scale", "auto"))


def e2_llm(story: Story, seed: int) -> Model:
    scale = story.settings.target // CONTEXT
    flags = f"{story.rate()} --max-position-embeddings {CONTEXT} --rope-max-scale {scale}"
    run = story.train("e2-llm", story.settings.short, seed, flags)
    return Model(run / "checkpoints", ("--rope-scale", "auto"))


def long_recipe(story: Story, seed: int) -> Model:
    """Condensed documents, gaps between their sentences; replay; the mean of the weights before and after."""
    settings, folder = story.settings, story.folder
    gaps = f"{story.long_positions} --position-gaps-to {settings.target}"
    iterations = settings.condensed.iterations - settings.replayed
    stage = replace(settings.condensed, length=CONTEXT, iterations=iterations)
    flags = f"{gaps} {story.rate()} --data-path {folder / 'condensed'}"
    gapped = story.train("longrecipe-gaps", stage, seed, flags)
    tenth = f"{float(settings.lr) / 10:g}"
    replay = replace(settings.short, iterations=settings.replayed)
    run = story.train(
        "longrecipe-replay", replay, seed, f"{story.long_positions} {story.rate(tenth)}", gapped
    )
    merged = folder / f"longrecipe-seed{seed}"
    if not merged.exists():
        phd("merge", run / "checkpoints", KEPT / "pretrained", "--weights", 0.5, 0.5, "--output", merged)
    return Model(merged)


def pro_long(story: Story, seed: int) -> Model:
    """Two stages of ever longer documents beside short ones, without a loss for a document's first token."""
    settings, folder = story.settings, story.folder
    flags = f"{story.rate()} {story.long_positions} --mask-document-starts"
    first, second = (
        f"{flags} --data-path {shlex.join(blend(folder / name, folder / 'documents-256-again'))}"
        for name in ("pieces", f"documents-{settings.long.name}")
    )
    half = story.train("prolong-first", settings.pieces, seed, first)
    run = story.train("prolong", settings.long, seed, second, half)
    return Model(run / "checkpoints")


def blend(long: Path, short: Path) -> list[str]:
    """Of Megatron's --data-path."""
    return [str(1 - SHORT_SHARE), str(long), str(SHORT_SHARE), str(short)]


def trained_at_target(story: Story, _: int) -> Model:
    return Model(KEPT / "extended")


@dataclass(frozen=True)
class System:
    """A row of the table."""

    name: str
    model: Callable[[Story, int], Model]
    trained: bool = True
    """here, with each seed"""


SYSTEMS = (
    System("as pretrained", plain, trained=False),
    System("positions interpolated", interpolated, trained=False),
    System("another RoPE base", other_base, trained=False),
    System("trained on, then interpolated", trained_on),
    System("E2-LLM", e2_llm),
    System("LongRecipe", long_recipe),
    System("ProLong", pro_long),
    System("trained at 4096 (make longgen: six times the tokens)", trained_at_target, trained=False),
)


def main() -> int:
    mode = os.environ.get("LONGCONTEXT", "")
    if mode not in MODES:
        console.print(f"LONGCONTEXT={mode} is not known: leave it out")
        return 2
    settings = choose(mode)
    story = Story(open_folder("LONGCONTEXT", mode, settings), settings)
    prepare(story, tiny=mode == "tiny")
    results: dict[str, list[dict[str, Any]]] = {}
    for system in SYSTEMS:
        for seed in settings.seeds if system.trained else settings.seeds[:1]:
            model = system.model(story, seed)
            step(f"Evaluate: {system.name}{f', seed {seed}' if system.trained else ''}")
            results.setdefault(system.name, []).append(evaluate(story, system, model, seed))
    report(results, story)
    return 0


def prepare(story: Story, tiny: bool) -> None:
    """Text, data sets, and the pretrained model as a checkpoint."""
    settings, folder = story.settings, story.folder
    step("Corpus and documents")
    if not (folder / "tokenizer.model").exists():
        shutil.copy(KEPT / "pretrained" / "tokenizer.model", folder)
    prepare_text(folder, settings.longgen, tiny)
    for stage in (settings.short, settings.condensed, settings.long):
        prepare_documents(stage, folder)
    condensed = folder / f"documents-{settings.condensed.name}"
    phd("data", "condense", condensed, "--output", folder / "condensed", "--tokens", CONTEXT,
        "--tokenizer-model", folder / "tokenizer.model")  # fmt: skip
    phd("data", "cut", folder / f"documents-{settings.long.name}", "--output", folder / "pieces",
        "--length", settings.pieces.length)  # fmt: skip
    if not (folder / "start" / "checkpoints").exists():
        (folder / "start").mkdir(exist_ok=True)
        phd("import", KEPT / "pretrained", folder / "start" / "checkpoints")


def evaluate(story: Story, system: System, model: Model, seed: int) -> dict[str, Any]:
    """Needles found and losses, by length."""
    number = SYSTEMS.index(system)
    lengths = story.settings.lengths
    corpus = ("--corpus", story.folder / "held-out.jsonl")
    losses = story.folder / f"losses-{number}-seed{seed}.json"
    # where positions are scaled, each length is read at its own scale
    together = [(length,) for length in lengths] if model.flags else [lengths]
    grids = []
    for some in together:
        needles = story.folder / f"needles-{number}-seed{seed}-{some[0]}.json"
        if not needles.exists():
            phd("eval", model.path, "--tasks", "phd_needle", *corpus, "--lengths", _commas(some),
                *model.flags, "--limit", story.settings.prompts, "--batch-size", 1,
                "--output", needles)  # fmt: skip
        grids += json.loads(needles.read_text())["grids"]
    if not losses.exists():
        phd("eval", model.path, "--loss-by-position", *corpus, "--lengths", _commas(lengths), *model.flags,
            "--limit", story.settings.texts, "--output", losses)  # fmt: skip
    readings = json.loads(losses.read_text())["readings"]
    return {
        "seed": seed,
        "needles": [fmean(column) for grid in grids for column in zip(*grid["accuracy"], strict=True)],
        "loss": [reading["loss"]["mean"] for reading in readings],
        "readings": readings,
        "grids": grids,
    }


def _commas(lengths: Sequence[int]) -> str:
    return ",".join(map(str, lengths))


def report(results: dict[str, list[dict[str, Any]]], story: Story) -> None:
    """Two tables, longcontext.json and longcontext.png."""
    lengths = story.settings.lengths
    titles = {"needles": "needles found, all depths", "loss": "loss of held-out text, nats a token"}
    for kind, title in titles.items():
        table = Table("system", *(f"{length:,} tokens" for length in lengths), title=title)
        for name, seeds in results.items():
            columns = zip(*(result[kind] for result in seeds), strict=True)
            table.add_row(name, *(_shown(column, kind) for column in columns))
        console.print(table)
    content = {
        "command": "make longcontext",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}",
        "settings": asdict(story.settings),
        "rotary_base": story.base,
        "lengths": lengths,
        "systems": results,
    }
    write_json(story.folder / "longcontext.json", content)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for place, (kind, title) in enumerate(titles.items(), start=1):
        axes = figure.add_subplot(1, 2, place)
        for name, seeds in results.items():
            means = [fmean(column) for column in zip(*(result[kind] for result in seeds), strict=True)]
            axes.plot(lengths, means, marker="o", markersize=3, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set_xlabel("tokens read")
        axes.set_title(title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(story.folder / "longcontext.png", dpi=110)
    console.print(f"\n[bold]Everything:[/bold] {story.folder}")


def _shown(values: tuple[float, ...], kind: str) -> str:
    """Mean, and least to most of several seeds."""
    form = "{:.0%}" if kind == "needles" else "{:.3f}"
    text = form.format(fmean(values))
    if len(values) > 1:
        text += f" ({form.format(min(values))} to {form.format(max(values))})"
    return text


if __name__ == "__main__":
    sys.exit(unless_interrupted(main))

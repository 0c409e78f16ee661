"""Read what a run recorded: phd_run.json, and metrics.jsonl beside it."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from phd.run.starts import arguments_by_iteration

RUN_FILE = "phd_run.json"
METRICS_FILE = "metrics.jsonl"
# No run lives in these: the first is a snapshot of the code with its tests, the others are large.
NOT_RUNS = ("code", "checkpoints", "wandb")
WHOLE_NUMBERS = ("copies", "seed", "seq_length", "global_batch_size", "train_iters", "parameters")

TRAIN_LOSS = "lm loss"
VALIDATION_LOSS = "lm loss validation"
ORIGINAL_LOSS = "lm loss original validation"  # what the original copy alone would have predicted
GRADIENT_NORM = "grad-norm"
LEARNING_RATE = "learning-rate"
THROUGHPUT = "phd/tokens-per-second"
TFLOPS = "phd/tflops-per-device"
MFU = "phd/mfu"
RATES = (THROUGHPUT, TFLOPS, MFU)
# With --multiple-validation-sets there is one loss for each; Megatron may log a perplexity beside it.
VALIDATION_SET = re.compile(
    rf"(?P<of>{VALIDATION_LOSS}|{ORIGINAL_LOSS})-(?P<name>.+?)(?<! ppl)(?<! vs samples)"
)

type Curve = dict[int, float]
"""A number by original tokens seen, in rising order; nan where the recorded number was not finite."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the model made of a prompt during training."""

    iteration: int
    tokens: int
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run. Curves are keyed by original tokens seen; losses are in nats per token."""

    path: Path
    name: str
    copies: int
    seed: int
    seq_length: int
    global_batch_size: int
    train_iters: int
    parameters: int
    flops_per_token: float
    arguments: Mapping[str, Any] | None
    """Megatron's arguments by their underscored names, those of the last start that trained; None for a run
    that did not record them.
    """
    starts: tuple[tuple[int, Mapping[str, Any]], ...]
    """(iteration that it went on from, arguments) of every start that trained, the first one first."""
    iteration: int
    """The last one recorded."""
    metrics: Mapping[str, Curve]
    """Losses, rates and the like by their names in metrics.jsonl, those never recorded left out.

    A loss that was recorded for several named sets alone also stands there as the mean over them.
    """
    seconds: Curve
    """Since the first record, pauses included, at every point of the losses."""
    samples: tuple[Sample, ...]
    """In the order in which they were written."""
    flops: Curve
    """Training FLOPs spent, at every point of the losses."""

    @property
    def train_loss(self) -> Curve:
        return self.metrics[TRAIN_LOSS]

    @property
    def validation_loss(self) -> Curve:
        """With several named sets the mean over them."""
        return self.metrics.get(VALIDATION_LOSS, {})

    @property
    def validation_sets(self) -> dict[str, Curve]:
        """The named sets; empty without --multiple-validation-sets."""
        matches = {tag: VALIDATION_SET.fullmatch(tag) for tag in self.metrics}
        return {
            match["name"]: self.metrics[tag]
            for tag, match in matches.items()
            if match and match["of"] == VALIDATION_LOSS
        }

    @property
    def throughput(self) -> Curve:
        """Original tokens per second of all devices together, at the log intervals."""
        return self.metrics.get(THROUGHPUT, {})

    @property
    def tokens(self) -> int:
        """Original tokens seen at the last recorded iteration."""
        return next(reversed(self.train_loss))

    @property
    def finished(self) -> bool:
        return self.iteration >= self.train_iters

    @property
    def progress(self) -> float:
        """The part of the training that is done, 0 to 1."""
        return self.iteration / self.train_iters

    @property
    def final_train_loss(self) -> float:
        """Mean over the last tenth of training: one batch alone is too noisy to compare."""
        start = 0.9 * self.tokens
        return fmean(loss for tokens, loss in self.train_loss.items() if tokens > start)

    @property
    def validated_tokens(self) -> int | None:
        """Original tokens seen at the last validation; None if there was none yet."""
        return next(reversed(self.validation_loss), None)

    @property
    def final_validation_loss(self) -> float | None:
        """Last validation, or None if there was none yet."""
        return None if self.validated_tokens is None else self.validation_loss[self.validated_tokens]

    @property
    def training_flops(self) -> float:
        """FLOPs spent up to the last recorded iteration."""
        return self.flops[self.tokens]

    @property
    def tokens_per_second(self) -> float | None:
        """The median, as now and then an evaluation or a checkpoint lies between; None if not logged."""
        return median(self.throughput.values()) if self.throughput else None


def find_runs(folder: Path) -> list[Run]:
    """Every run in ``folder`` and below it, in the order of their paths.

    Raises:
        FileNotFoundError: there is no such folder, or no phd_run.json below it.
        ValueError: a file of a run is not what pretrain_phd.py writes, or a run has recorded no loss.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the --run-dir of a run, or one above it")
    run_files = []
    for path, names, files in folder.walk():
        names[:] = [name for name in names if name not in NOT_RUNS]
        if RUN_FILE in files:
            run_files.append(path / RUN_FILE)
    if not run_files:
        raise FileNotFoundError(
            f"no {RUN_FILE} in {folder} or below it; pretrain_phd.py writes it into its --run-dir"
        )
    return [read_run(file) for file in sorted(run_files)]


def read_run(run_file: Path) -> Run:
    """The run that ``run_file`` (a phd_run.json) describes, with the metrics recorded beside it.

    Raises:
        ValueError: see :func:`find_runs`.
    """
    try:
        about = json.loads(run_file.read_text(encoding="utf-8"))
        name, flops_per_token = str(about["name"]), float(about["flops_per_token"])
        arguments = about.get("arguments")
        if not isinstance(arguments, dict | None):
            raise TypeError("arguments is not an object")
        starts = arguments_by_iteration(about)
        if arguments and about["train_iters"] is None:  # --train-samples, and Megatron has not counted yet
            about["train_iters"] = arguments["train_samples"] // about["global_batch_size"]
        whole = {key: int(about[key]) for key in WHOLE_NUMBERS}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{run_file} is not what pretrain_phd.py writes ({error!r})") from error

    metrics: dict[str, Curve] = {}
    flops: Curve = {}
    times: Curve = {}
    samples: list[Sample] = []
    iteration = 0
    for record in _read_records(run_file.with_name(METRICS_FILE)):
        tokens, numbers = record["tokens"], record["numbers"]
        if record["kind"] == "samples":
            samples += [
                Sample(iteration=record["iteration"], tokens=tokens, prompt=prompt, text=text)
                for prompt, text in record["samples"]
            ]
            continue
        for loss in (VALIDATION_LOSS, ORIGINAL_LOSS):
            matches = {tag: VALIDATION_SET.fullmatch(tag) for tag in numbers}
            named = [numbers[tag] for tag, match in matches.items() if match and match["of"] == loss]
            if named and loss not in numbers:
                numbers[loss] = fmean(named)
        if (TRAIN_LOSS if record["kind"] == "train" else VALIDATION_LOSS) not in numbers:
            continue
        if record["kind"] == "train":
            iteration = record["iteration"]
        flops[tokens] = record["flops"]
        if record["time"] is not None:
            times[tokens] = record["time"]
        for tag, number in numbers.items():
            if tag not in RATES or math.isfinite(number):
                metrics.setdefault(tag, {})[tokens] = number
    if TRAIN_LOSS not in metrics:
        raise ValueError(
            f"no training loss is recorded in {run_file.parent} yet; pretrain_phd.py writes {METRICS_FILE} "
            "from its first iteration on"
        )
    # A finished run that is started again has a start that trained nothing.
    trained = tuple(start for start in starts if start[0] < iteration)
    return Run(
        path=run_file.parent,
        name=name,
        flops_per_token=flops_per_token,
        arguments=trained[-1][1] if trained else arguments,
        starts=trained,
        iteration=iteration,
        metrics=metrics,
        seconds={tokens: time - min(times.values()) for tokens, time in sorted(times.items())},
        samples=tuple(samples),
        flops=dict(sorted(flops.items())),
        **whole,
    )


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of training, validation and samples of a metrics.jsonl, null read as nan."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # torn by a kill, or being written right now
            try:
                record = json.loads(line)
                if record["kind"] not in ("train", "validation", "samples"):
                    continue
                about = {"kind": record["kind"], "iteration": int(record["iteration"])}
                about |= {"tokens": int(record["tokens"]), "flops": float(record["flops"])}
                about["time"] = float(record["time"]) if "time" in record else None
                about["samples"] = [
                    (str(sample["prompt"]), str(sample["text"])) for sample in record.get("samples", ())
                ]
                about["numbers"] = {
                    tag: math.nan if value is None else float(value)
                    for tag, value in record.items()
                    if tag.startswith(TRAIN_LOSS) or tag in (GRADIENT_NORM, LEARNING_RATE, *RATES)
                }
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}, line {number} is not what pretrain_phd.py writes ({error!r})"
                ) from error
            yield about

"""What a run recorded, as curves by the original tokens seen."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from phd.run.record import (
    GRADIENT_NORM,
    LEARNING_RATE,
    METRICS_FILE,
    MFU,
    ORIGINAL_LOSS,
    RUN_FILE,
    TFLOPS,
    THROUGHPUT,
    TRAIN_LOSS,
    VALIDATION_LOSS,
    RunInfo,
    read_lines,
    read_run_info,
)

# No run lives in these: the first is a snapshot of the code with its tests, the others are large.
NOT_RUNS = ("code", "checkpoints", "wandb")

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
class RunLog(RunInfo):
    """One training run. Curves are keyed by original tokens seen; losses are in nats per token. Of the starts
    (and the last one's arguments) those that trained nothing are left out.
    """

    path: Path
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
        """The part of the training that is done, 0 to 1; a branch's begins where its trunk ends."""
        return (self.iteration - self.first_iteration) / (self.train_iters - self.first_iteration)

    @property
    def final_train_loss(self) -> float:
        """Mean over the last tenth of training, of a branch of its own: one batch is too noisy to compare."""
        start = self.first_tokens + 0.9 * (self.tokens - self.first_tokens)
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


def find_runs(folder: Path) -> list[RunLog]:
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


def read_run(run_file: Path) -> RunLog:
    """The run that ``run_file`` (a phd_run.json) describes, with the metrics recorded beside it.

    Raises:
        ValueError: see :func:`find_runs`.
    """
    info = read_run_info(run_file)
    metrics: dict[str, Curve] = {}
    flops: Curve = {}
    times: Curve = {}
    samples: list[Sample] = []
    iteration = 0
    for line in read_lines(run_file.with_name(METRICS_FILE)):
        kind, tokens = line["kind"], line["tokens"]
        if kind == "samples":
            samples += [
                Sample(iteration=line["iteration"], tokens=tokens, prompt=row["prompt"], text=row["text"])
                for row in line.get("samples", ())
            ]
        if kind not in ("train", "validation"):
            continue
        numbers = {
            tag: math.nan if value is None else value
            for tag, value in line.items()
            if tag.startswith(TRAIN_LOSS) or tag in (GRADIENT_NORM, LEARNING_RATE, *RATES)
        }
        for loss in (VALIDATION_LOSS, ORIGINAL_LOSS):
            matches = {tag: VALIDATION_SET.fullmatch(tag) for tag in numbers}
            named = [numbers[tag] for tag, match in matches.items() if match and match["of"] == loss]
            if named and loss not in numbers:
                numbers[loss] = fmean(named)
        if (TRAIN_LOSS if kind == "train" else VALIDATION_LOSS) not in numbers:
            continue
        if kind == "train":
            iteration = line["iteration"]
        flops[tokens] = line["flops"]
        if "time" in line:
            times[tokens] = line["time"]
        for tag, number in numbers.items():
            if tag not in RATES or math.isfinite(number):
                metrics.setdefault(tag, {})[tokens] = number
    if TRAIN_LOSS not in metrics:
        raise ValueError(
            f"no training loss is recorded in {run_file.parent} yet; pretrain_phd.py writes {METRICS_FILE} "
            "from its first iteration on"
        )
    # A finished run that is started again has a start that trained nothing.
    trained = tuple(start for start in info.starts if start[0] < iteration)
    of_starts = {"starts": trained, "arguments": trained[-1][1] if trained else info.arguments}
    return RunLog(
        **vars(info) | of_starts,
        path=run_file.parent,
        iteration=iteration,
        metrics=metrics,
        seconds={tokens: time - min(times.values()) for tokens, time in sorted(times.items())},
        samples=tuple(samples),
        flops=dict(sorted(flops.items())),
    )

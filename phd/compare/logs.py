"""Read what a run logged: phd_run.json and the TensorBoard event files beside it."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

RUN_FILE = "phd_run.json"
WHOLE_NUMBERS = ("seed", "seq_length", "global_batch_size", "train_iters", "parameters")
# Megatron writes every loss twice; the step of these tags is the number of samples seen, which stays right
# when the batch size ramps up.
TRAIN_TAG = "lm loss vs samples"
VALIDATION_TAG = "lm loss validation vs samples"

type Curve = dict[int, float]
"""A scalar by step, in rising order of steps."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run. Curves are keyed by original tokens seen."""

    path: Path
    name: str
    seed: int
    seq_length: int
    global_batch_size: int
    train_iters: int
    parameters: int
    flops_per_token: float
    train_loss: Curve
    validation_loss: Curve
    tokens_per_second: float | None
    """Original tokens per second of all devices together; None with fewer than two logged steps."""

    @property
    def tokens(self) -> int:
        """Original tokens seen at the last logged step."""
        return max(self.train_loss)

    @property
    def final_train_loss(self) -> float:
        """Mean over the last tenth of training: one batch alone is too noisy to compare."""
        return fmean(loss for tokens, loss in self.train_loss.items() if tokens > 0.9 * self.tokens)

    @property
    def final_validation_loss(self) -> float | None:
        """Last validation, or None if there was none yet."""
        return list(self.validation_loss.values())[-1] if self.validation_loss else None

    @property
    def training_flops(self) -> float:
        """FLOPs spent up to the last logged step."""
        return self.tokens * self.flops_per_token


def find_runs(folder: Path) -> list[Run]:
    """Every run in ``folder`` and below it, in the order of their paths.

    Raises:
        FileNotFoundError: there is no such folder, or no phd_run.json below it.
        ValueError: a phd_run.json is not what pretrain_phd.py writes, or a run has logged no loss.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; give the --tensorboard-dir of a run, or one above it"
        )
    run_files = sorted(folder.rglob(RUN_FILE))
    if not run_files:
        raise FileNotFoundError(
            f"no {RUN_FILE} in {folder} or below it; pretrain_phd.py writes it into its --tensorboard-dir"
        )
    return [read_run(file) for file in run_files]


def read_run(run_file: Path) -> Run:
    """The run that ``run_file`` (a phd_run.json) describes, with the losses logged beside it.

    Raises:
        ValueError: see :func:`find_runs`.
    """
    try:
        about = json.loads(run_file.read_text(encoding="utf-8"))
        name, flops_per_token = str(about["name"]), float(about["flops_per_token"])
        whole = {key: int(about[key]) for key in WHOLE_NUMBERS}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{run_file} is not what pretrain_phd.py writes ({error!r})") from error

    train_loss, validation_loss, rate = read_losses(run_file.parent)
    if not train_loss:
        raise ValueError(
            f"no training loss is logged in {run_file.parent} yet; Megatron writes the first one after "
            "--tensorboard-log-interval iterations"
        )
    seq_length = whole["seq_length"]
    return Run(
        path=run_file.parent,
        name=name,
        flops_per_token=flops_per_token,
        train_loss={samples * seq_length: loss for samples, loss in train_loss.items()},
        validation_loss={samples * seq_length: loss for samples, loss in validation_loss.items()},
        tokens_per_second=None if rate is None else rate * seq_length,
        **whole,
    )


def read_losses(folder: Path) -> tuple[Curve, Curve, float | None]:
    """Training loss, validation loss (both by samples seen) and samples per second from the event files.

    There is one file for each start of the run. A run that was stopped and resumed from a checkpoint repeats
    the steps after it: the later start wins, and what an earlier one logged beyond that point is dropped.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    merged: dict[str, Curve] = {TRAIN_TAG: {}, VALIDATION_TAG: {}}
    rates: list[float] = []
    # Names begin with events.out.tfevents.<seconds since 1970>, so they sort by time.
    for file in sorted(folder.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}, purge_orphaned_data=False)
        events.Reload()
        logged = {tag: events.Scalars(tag) for tag in merged if tag in events.Tags()["scalars"]}
        if not logged:
            continue
        first = min(scalars[0].step for scalars in logged.values())
        for tag, curve in merged.items():
            merged[tag] = {step: value for step, value in curve.items() if step <= first}
        for tag, scalars in logged.items():
            # Megatron evaluates the test set at the end under the tag and step of the last validation: the
            # first value that one start gives to a step is the validation's.
            merged[tag] |= {scalar.step: scalar.value for scalar in reversed(scalars)}
        for before, after in pairwise(logged.get(TRAIN_TAG, [])):
            seconds = after.wall_time - before.wall_time
            if seconds > 0:  # not when the machine's clock was set back
                rates.append((after.step - before.step) / seconds)
    # The median, as now and then there is an evaluation or a checkpoint between two logged steps.
    rate = median(rates) if rates else None
    train_loss, validation_loss = (dict(sorted(curve.items())) for curve in merged.values())
    return train_loss, validation_loss, rate

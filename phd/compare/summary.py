"""All numbers of a comparison: a summary for each group, and the JSON of everything."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from phd.compare.curves import first_reach, value_at
from phd.compare.groups import Group, final_differences
from phd.compare.logs import RunLog
from phd.compare.paper import paper_losses
from phd.compare.statistics import USUAL, Criterion, Mean, PairedDifference, mean_interval, paired_difference
from phd.compare.worth import PARSCALE, ScalingLaw, kv_cache_ratio


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Where a group first has the baseline's final validation loss."""

    tokens: float
    flops: float
    tokens_ratio: float
    """To the baseline's at its last validation; below 1: with less."""
    flops_ratio: float


@dataclass(frozen=True, kw_only=True)
class Worth:
    """A difference of the validation loss in units of model size, and its cost."""

    parameters: float | None
    """How many times the parameters a vanilla model would need for the same loss, by the comparison's law;
    None where no size is enough."""
    flops: float
    """Training FLOPs per token, to the baseline's."""
    kv_cache: float | None
    """Bytes of the KV cache, to vanilla's; None where the run does not tell."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One group. Losses in nats per token; differences are paired by seed, negative is better."""

    label: str
    name: str
    is_baseline: bool
    seeds: tuple[int, ...]
    progress: Mapping[int, float]
    """Of the unfinished runs: seed: part of the training that is done."""
    train_loss: Mean | None
    """Of the runs that have seen the most tokens, each the mean over its last tenth of training."""
    validation_loss: Mean | None
    """Of the runs whose last validation is the latest."""
    train_difference: PairedDifference | None
    validation_difference: PairedDifference | None
    reach: Reach | None
    worth: Worth | None
    tokens: int
    training_flops: float
    parameters: int
    tokens_per_second: float | None


@dataclass(frozen=True)
class Comparison:
    """Groups, a summary for each, and what the summaries were made by. The first group is the baseline."""

    groups: Sequence[Group]
    summaries: Sequence[Summary]
    criterion: Criterion
    """Of intervals, p-values and the pairs that a difference needs."""
    law: ScalingLaw
    """By which a difference of losses is worth parameters."""


def summarize(
    groups: Sequence[Group], criterion: Criterion = USUAL, law: ScalingLaw = PARSCALE
) -> Comparison:
    """The comparison of ``groups``; the first one is the baseline."""
    summaries = [_summarize(group, groups[0], criterion, law) for group in groups]
    return Comparison(groups, summaries, criterion, law)


def _summarize(group: Group, baseline: Group, criterion: Criterion, law: ScalingLaw) -> Summary:
    difference = _difference(group, baseline, "validation", criterion)
    rates = [run.tokens_per_second for run in group.runs if run.tokens_per_second is not None]
    return Summary(
        label=group.label,
        name=group.name,
        is_baseline=group is baseline,
        seeds=tuple(run.seed for run in group.runs),
        progress={run.seed: run.progress for run in group.runs if not run.finished},
        train_loss=mean_interval([run.final_train_loss for run in group.trained], criterion),
        validation_loss=_final_validation(group, criterion),
        train_difference=_difference(group, baseline, "train", criterion),
        validation_difference=difference,
        reach=_reach(group, baseline),
        worth=None if difference is None else _worth(group, baseline, difference, law),
        tokens=group.trained[0].tokens,
        training_flops=group.trained[0].training_flops,
        parameters=group.runs[0].parameters,
        tokens_per_second=fmean(rates) if rates else None,
    )


def _final_validation(group: Group, criterion: Criterion = USUAL) -> Mean | None:
    losses = (run.final_validation_loss for run in group.validated)
    return mean_interval([loss for loss in losses if loss is not None], criterion)


def _difference(group: Group, baseline: Group, of: str, criterion: Criterion) -> PairedDifference | None:
    if group is baseline:
        return None
    return paired_difference(list(final_differences(group, baseline, of).values()), criterion)


def _worth(group: Group, baseline: Group, difference: PairedDifference, law: ScalingLaw) -> Worth:
    run, vanilla = group.runs[0], baseline.runs[0]
    return Worth(
        parameters=law.parameters_factor(difference.mean, vanilla.parameters),
        flops=run.flops_per_token / vanilla.flops_per_token,
        kv_cache=kv_cache_ratio(run),
    )


def _reach(group: Group, baseline: Group) -> Reach | None:
    target = _final_validation(baseline)
    if target is None or not group.validated:
        return None
    tokens = first_reach(group.mean_validation, target.mean)
    if tokens is None:
        return None
    flops = value_at(group.validated[0].flops, tokens)
    last = max(baseline.validated[0].validation_loss)
    return Reach(
        tokens=tokens,
        flops=flops,
        tokens_ratio=tokens / last,
        flops_ratio=flops / baseline.validated[0].flops[last],
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, for JSON: ``baseline`` (a label), ``criterion``, ``law``, ``groups``, ``runs``; null is
    missing or not finite.
    """
    baseline = comparison.groups[0]
    content = {
        "baseline": baseline.label,
        "criterion": dataclasses.asdict(comparison.criterion),
        "law": comparison.law.about,
        "groups": [
            dataclasses.asdict(summary)
            | {"paper": [dataclasses.asdict(loss) for loss in paper_losses(summary.name)]}
            for summary in comparison.summaries
        ],
        "runs": [_run_as_json(run, group, baseline) for group in comparison.groups for run in group.runs],
    }
    finite: dict[str, Any] = _finite(content)
    return finite


def _run_as_json(run: RunLog, group: Group, baseline: Group) -> dict[str, Any]:
    differences = {} if group is baseline else final_differences(group, baseline)
    train_differences = {} if group is baseline else final_differences(group, baseline, "train")
    return {
        "label": group.label,
        "name": run.name,
        "seed": run.seed,
        "path": str(run.path),
        "iteration": run.iteration,
        "train_iters": run.train_iters,
        "finished": run.finished,
        "parameters": run.parameters,
        "tokens": run.tokens,
        "train_loss": run.final_train_loss,
        "validation_loss": run.final_validation_loss,
        "validation_sets": {name: list(curve.values())[-1] for name, curve in run.validation_sets.items()},
        "train_difference": train_differences.get(run.seed),
        "difference": differences.get(run.seed),
        "training_flops": run.training_flops,
        "tokens_per_second": run.tokens_per_second,
        "validation_curve": {
            "tokens": list(run.validation_loss),
            "flops": [run.flops[tokens] for tokens in run.validation_loss],
            "loss": list(run.validation_loss.values()),
        },
    }


def _finite(content: Any) -> Any:
    """JSON has no nan and no infinity."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

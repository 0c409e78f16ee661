"""The seeds of a variant make a group, which is paired seed by seed with the baseline's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phd.compare.arguments import argument
from phd.compare.curves import mean_curve
from phd.compare.logs import Curve, RunLog
from phd.rules.variant import Variant
from phd.run.arguments import ABSENT, flag

VANILLA = str(Variant())

# The name of a variant does not say these, so runs that differ in them make groups of their own.
# train_iters differs only under --vary, or between runs that recorded no arguments.
BESIDE_THE_NAME = ("train_iters", "phd_prune_last_layer", "phd_attention_backend")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, in the order of the seeds."""

    label: str
    runs: tuple[RunLog, ...]

    @property
    def name(self) -> str:
        """The variant, as in the paper; the label also says what --vary lets differ."""
        return self.runs[0].name

    @property
    def trained(self) -> tuple[RunLog, ...]:
        """The runs that have seen the most tokens: those whose final training losses belong in one mean."""
        return tuple(run for run in self.runs if run.tokens == max(run.tokens for run in self.runs))

    @property
    def validated(self) -> tuple[RunLog, ...]:
        """The runs whose last validation is the latest; none if no run has had one."""
        tokens = [run.validated_tokens for run in self.runs if run.validated_tokens is not None]
        return tuple(run for run in self.runs if tokens and run.validated_tokens == max(tokens))

    @property
    def mean_validation(self) -> Curve:
        """Mean validation loss of the ``validated`` runs at the tokens where all of them have one."""
        return mean_curve([run.validation_loss for run in self.validated])


def group_runs(runs: Sequence[RunLog], vary: Sequence[str] = (), baseline: str | None = None) -> list[Group]:
    """Group comparable runs by variant and by the arguments in ``vary``; the baseline comes first.

    Args:
        vary: underscored names of the arguments that make groups of their own.
        baseline: label or name of a group; without one the first vanilla group is the baseline, or the group
            of the first run where nothing is vanilla.

    Raises:
        ValueError: two runs differ in nothing, or there is not exactly one ``baseline``.
    """
    members: dict[tuple[Any, ...], dict[int, RunLog]] = {}
    arguments = tuple(dict.fromkeys([*vary, *BESIDE_THE_NAME]))
    for run in runs:
        # As text, for an argument may be a list.
        seeds = members.setdefault((run.name, *(str(_value(run, name)) for name in arguments)), {})
        if run.seed in seeds:
            raise ValueError(
                f"{seeds[run.seed].path} and {run.path} are both {run.name} with --seed {run.seed} and "
                f"--train-iters {run.train_iters}; leave one out"
            )
        seeds[run.seed] = run
    groups = []
    for key, seeds in members.items():
        label = key[0]
        for position, name in enumerate(arguments, start=1):
            # A --vary counts against all runs; the others only tell apart what has one name.
            rivals = [other for other in members if name in vary or other[0] == key[0]]
            if any(other[position] != key[position] for other in rivals):
                label += f", {flag(name)[2:]} {key[position]}"
        groups.append(Group(label, tuple(seeds[seed] for seed in sorted(seeds))))
    return _baseline_first(groups, baseline)


def _value(run: RunLog, name: str) -> Any:
    if name.startswith("phd_") and run.copies == 1:
        return ABSENT  # a run of one copy does not read it
    value = argument(run, name)
    # what the default was called once
    return "flash" if name == "phd_attention_backend" and value == "auto" else value


def _baseline_first(groups: list[Group], baseline: str | None) -> list[Group]:
    if baseline is None:
        return sorted(groups, key=lambda group: group.name != VANILLA)
    found = [group for group in groups if group.label == baseline] or [
        group for group in groups if group.name == baseline
    ]
    if len(found) != 1:
        labels = ", ".join(f"'{group.label}'" for group in groups)
        raise ValueError(f"--baseline {baseline} names {len(found)} of the groups; choose from {labels}")
    return found + [group for group in groups if group is not found[0]]


def pairs(group: Group, baseline: Group) -> dict[int, tuple[RunLog, RunLog]]:
    """By seed: a run of ``group`` and the one of ``baseline`` that saw the same batches."""
    partners: Mapping[int, RunLog] = {run.seed: run for run in baseline.runs}
    return {run.seed: (run, partners[run.seed]) for run in group.runs if run.seed in partners}


def final_differences(group: Group, baseline: Group, of: str = "validation") -> dict[int, float]:
    """By seed: final loss of ``group`` minus ``baseline``'s, of the pairs that have seen equally many tokens.

    Args:
        of: "validation" or "train".
    """
    differences = {}
    for seed, (run, other) in pairs(group, baseline).items():
        if of == "train" and run.tokens == other.tokens:
            differences[seed] = run.final_train_loss - other.final_train_loss
        elif of == "validation" and run.validated_tokens == other.validated_tokens:
            losses = run.final_validation_loss, other.final_validation_loss
            if losses[0] is not None and losses[1] is not None:
                differences[seed] = losses[0] - losses[1]
    return differences


def difference_curves(group: Group, baseline: Group) -> dict[int, Curve]:
    """By seed: validation loss of ``group`` minus ``baseline``'s, at the tokens where both have one."""
    return {
        seed: {
            tokens: loss - other.validation_loss[tokens]
            for tokens, loss in run.validation_loss.items()
            if tokens in other.validation_loss
        }
        for seed, (run, other) in pairs(group, baseline).items()
    }

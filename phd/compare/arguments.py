"""Refuse to compare runs that differ in more than what is compared, by the arguments that they recorded; also
one that differs from itself, as it went on with other arguments half-way.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from phd.compare.logs import RunLog
from phd.rules.variant import ARGUMENTS
from phd.run.arguments import ABSENT, Arguments, differing, flag

DECLARED = frozenset(
    {
        *ARGUMENTS,
        *("phd_prune_last_layer", "phd_attention_backend", "seed"),
        "phd_copy_births",  # follows from the variant, and from the trunk's, which is compared
    }
)
"""What a comparison is about: the variant, how it is computed, and the seed."""

COMPUTED = frozenset({"phd_prune_last_layer", "phd_attention_backend"})
"""Of DECLARED: how it is computed, which one run may change half-way."""


def argument(run: RunLog, name: str) -> Any:
    """The value of an argument by its underscored name, ABSENT if ``run`` does not know it.

    A run that recorded no arguments knows those that phd_run.json has beside them.
    """
    if run.arguments is None:
        return getattr(run, name) if name in ("seq_length", "global_batch_size", "train_iters") else ABSENT
    return run.arguments.get(name, ABSENT)


def differences(run: RunLog, other: RunLog, vary: Collection[str] = ()) -> list[str]:
    """Names of the arguments in which two runs differ and must not, in alphabetical order.

    Args:
        vary: underscored names that may differ as well.
    """
    return [
        name for name in differing(_known(run, other), _known(other, run)) if name not in {*DECLARED, *vary}
    ]


def _known(run: RunLog, other: RunLog) -> Arguments:
    """What can be compared with ``other``: a run that recorded no arguments has a few."""
    if run.arguments is None or other.arguments is None:
        return {name: argument(run, name) for name in ("seq_length", "global_batch_size")}
    return run.arguments


def refuse_differences(runs: Sequence[RunLog], vary: Collection[str] = ()) -> None:
    """Check every run against the first.

    Args:
        vary: underscored names of arguments that may differ, beside DECLARED.

    Raises:
        ValueError: two runs differ in another argument, or one run changed one half-way that not all of them
            changed alike; or no run knows one of ``vary``.
    """
    for name in vary:
        if all(argument(run, name) == ABSENT for run in runs):
            raise ValueError(f"--vary {flag(name)[2:]}: no run has recorded an argument {flag(name)}")
    _refuse_changes(runs, vary)
    for run in runs[1:]:
        names = differences(runs[0], run, vary)
        if not names:
            continue
        first = names[0]
        more = f"; they also differ in {', '.join(map(flag, names[1:]))}" if names[1:] else ""
        remedy = " ".join(f"--vary {flag(name)[2:]}" for name in names)
        raise ValueError(
            f"{runs[0].path} was trained with {flag(first)} {argument(runs[0], first)} and {run.path} with "
            f"{argument(run, first)}{more}; if that is what you compare, add {remedy}"
        )


def _refuse_changes(runs: Sequence[RunLog], vary: Collection[str]) -> None:
    changes = [_changes(run, vary) for run in runs]
    for run, changed in zip(runs, changes, strict=True):
        alone = [change for change in changed if any(change not in other for other in changes)]
        if not alone:
            continue
        name, iteration, before, after = alone[0]
        names = list(dict.fromkeys(change[0] for change in alone))
        more = f"; it also changed {', '.join(map(flag, names[1:]))}" if names[1:] else ""
        remedy = " ".join(f"--vary {flag(name)[2:]}" for name in names)
        raise ValueError(
            f"{run.path} was trained with {flag(name)} {before} up to iteration {iteration} and with {after} "
            f"after it{more}; if that is what you compare, add {remedy}"
        )


def _changes(run: RunLog, vary: Collection[str]) -> list[tuple[str, int, Any, Any]]:
    """(name, iteration after which, value before, value after) of what one run changed half-way."""
    return [
        (name, iteration, before.get(name, ABSENT), after.get(name, ABSENT))
        for (_, before), (iteration, after) in pairwise(run.starts)
        for name in differing(before, after)
        if name not in {*COMPUTED, *vary}
    ]

"""The starts of a run and the arguments of each, as phd_run.json keeps them: a run may go on with others.

``arguments`` there are those of the last start. ``starts`` has an entry for each start whose iterations are
still in the record: the iteration that it went on from, and under ``differs`` what it had else than the last
one. A start that goes back to an earlier checkpoint takes the place of those after it, as its lines do in the
record.
"""

from collections.abc import Mapping
from typing import Any

from phd.run.arguments import ABSENT, Arguments

type About = Mapping[str, Any]
"""What phd_run.json holds."""


def with_start(about: About, before: About, iteration: int) -> dict[str, Any]:
    """``about`` with the starts of the run, this one included.

    Args:
        about: this start's, with ``arguments``.
        before: what phd_run.json held until now; empty for a run's first start.
        iteration: of the checkpoint that this start goes on from; 0 without one.
    """
    now = about["arguments"]
    kept = [
        {"iteration": first, "differs": _differs(arguments, now)}
        for first, arguments in arguments_by_iteration(before)
        if first < iteration
    ]
    return {**about, "starts": [*kept, {"iteration": iteration, "differs": {}}]}


def arguments_by_iteration(about: About) -> list[tuple[int, Arguments]]:
    """(iteration that it went on from, arguments) of every start in the record, the first one first. A run
    that older code recorded has one start, as far as anybody knows.

    Raises:
        ValueError, TypeError, KeyError: ``about`` is not what a run writes.
    """
    arguments = about.get("arguments")
    if arguments is None:
        return []
    starts = about.get("starts") or [{"iteration": 0, "differs": {}}]
    return [(int(start["iteration"]), {**arguments, **start["differs"]}) for start in starts]


def _differs(then: Arguments, now: Arguments) -> dict[str, Any]:
    values = {name: then.get(name, ABSENT) for name in sorted({*then, *now})}
    return {name: value for name, value in values.items() if value != now.get(name, ABSENT)}

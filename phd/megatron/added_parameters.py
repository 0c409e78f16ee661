"""Parameters added to a model in training (a copy embedding that its checkpoint does not have): optimizer
groups of their own, whose learning rate warms up.

Adam's moments of an added parameter start at zero, but its step count is the other parameters', so large
that Adam no longer corrects for moments that started at zero. With b1 = 0.9 and b2 = 0.999 the first step
would be 3.2 times as large as a fresh Adam's, and the tenth 6.5 times. So the learning rate is multiplied
by the missing correction, which makes the steps those of a fresh Adam (Kingma and Ba, arXiv 1412.6980,
section 3), and by a linear warm-up.
"""

import functools
import math
from argparse import Namespace
from typing import Any

from megatron.core.optimizer import ParamKey
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.training import get_args, training

from phd.megatron.compat import ADDED_AT
from phd.rules.variant import copy_parameter

UPDATES_BEFORE = "lr_born_step"
"""The key, beside ADDED_AT, of the number of updates that the optimizer had made by then. A step that fp16
skips is not an update."""


def install() -> None:
    """Let Megatron group, and warm up, the parameters that ``args.phd_copy_births`` says were added."""
    if hasattr(OptimizerParamScheduler.get_lr, "__wrapped__"):
        return
    make_optimizer, rate_of = training.get_megatron_optimizer, OptimizerParamScheduler.get_lr

    @functools.wraps(make_optimizer)
    def with_added_groups(*args: Any, config_overrides: dict[ParamKey, Any], **kwargs: Any) -> Any:
        return make_optimizer(*args, config_overrides={**config_overrides, **_groups(get_args())}, **kwargs)

    @functools.wraps(rate_of)
    def warmed_up(self: Any, group: dict[str, Any]) -> float:
        rate: float = rate_of(self, group)
        updates = _updates(self.optimizer) if group.get(ADDED_AT) is not None else None
        if updates is None:  # no parameters were added to this group, or the checkpoint is not loaded yet
            return rate
        before = group.setdefault(UPDATES_BEFORE, updates)
        return rate * warm_up(updates + 1, before, group["betas"], get_args().phd_copy_embedding_warmup_iters)

    training.get_megatron_optimizer = with_added_groups
    OptimizerParamScheduler.get_lr = warmed_up


def warm_up(update: int, before: int, betas: tuple[float, float], iterations: int) -> float:
    """The factor of the learning rate.

    Args:
        update: the number of this update, counted from the optimizer's first, which is 1.
        before: the number of updates before the parameter's first.
        betas: of Adam.
        iterations: length of the linear warm-up; 0 for none.
    """

    def correction(updates: int) -> float:
        first, second = (1 - beta**updates for beta in betas)
        return math.sqrt(second) / first

    own = update - before  # the number of this update, counted from the parameter's first
    return correction(own) / correction(update) * min(1.0, own / max(iterations, 1))


def _groups(args: Namespace) -> dict[ParamKey, dict[str, int]]:
    """Settings by parameter name, for Megatron: it makes a group of all parameters with the same settings."""
    return {
        ParamKey(name=f"*{copy_parameter(args.phd_copy_embedding, copy)}"): {ADDED_AT: iteration}
        for copy, iteration in enumerate(args.phd_copy_births, start=1)
        if iteration
    }


def _updates(optimizer: Any) -> int | None:
    """The number of updates that the optimizer has made; None before it has any state. torch's Adam counts
    them for each parameter, other Adams for each group.
    """
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        for state in one.state.values() if one.optimizer is not None else ():
            if "step" in state:
                return int(state["step"])
        for group in one.param_groups:
            if group["params"] and "step" in group:
                return int(group["step"])
    return None

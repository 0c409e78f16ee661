"""Parameters that are younger than the training which they joined: groups of their own in the optimizer,
whose learning rate warms up.

Adam's moments of a new parameter are zero, and its step count is that of all the others, late: the correction
for moments that began at zero is spent. With b1 = 0.9 and b2 = 0.999 the first step would be 3.2 times as
large as that of a fresh Adam, and the tenth 6.5 times. So the learning rate is multiplied by what is missing,
which makes the steps those of a fresh Adam (Kingma and Ba, arXiv 1412.6980, section 3), and by a linear
warm-up.
"""

import functools
import math
from argparse import Namespace
from typing import Any

from megatron.core.optimizer import ParamKey
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.training import get_args, training

from phd.megatron.compat import BORN

BORN_STEP = "lr_born_step"
"""Beside BORN: how many updates the optimizer had made by then. Steps that fp16 skips are none."""

NAMES = {
    "vector": "copy_embedding.vectors.{}",
    "table": "copy_embedding.tables.{}.word_embeddings.weight",
}
"""What a hidden copy has of its own, by --phd-copy-embedding; numbered from 0, which is copy 1's."""


def parameter_name(embedding: str, copy: int) -> str:
    """The name, in the model, of what ``copy`` (1..K-1) has of its own."""
    return NAMES[embedding].format(copy - 1)


def install() -> None:
    """Let Megatron group and warm up what ``args.phd_copy_births`` says is younger than the training."""
    if hasattr(OptimizerParamScheduler.get_lr, "__wrapped__"):
        return
    make_optimizer, rate_of = training.get_megatron_optimizer, OptimizerParamScheduler.get_lr

    @functools.wraps(make_optimizer)
    def with_young_groups(*args: Any, config_overrides: dict[ParamKey, Any], **kwargs: Any) -> Any:
        return make_optimizer(*args, config_overrides={**config_overrides, **_groups(get_args())}, **kwargs)

    @functools.wraps(rate_of)
    def warmed_up(self: Any, group: dict[str, Any]) -> float:
        rate: float = rate_of(self, group)
        updates = _updates(self.optimizer) if group.get(BORN) is not None else None
        if updates is None:  # all groups but young ones; and those before the checkpoint is loaded
            return rate
        born = group.setdefault(BORN_STEP, updates)
        return rate * warm_up(updates + 1, born, group["betas"], get_args().phd_copy_embedding_warmup_iters)

    training.get_megatron_optimizer = with_young_groups
    OptimizerParamScheduler.get_lr = warmed_up


def warm_up(update: int, born: int, betas: tuple[float, float], iterations: int) -> float:
    """What the learning rate is multiplied by.

    Args:
        update: which one this is of the optimizer's, from 1.
        born: how many of them there were before the parameter's first.
        betas: of Adam.
        iterations: of the linear warm-up; 0 for none.
    """

    def correction(updates: int) -> float:
        first, second = (1 - beta**updates for beta in betas)
        return math.sqrt(second) / first

    age = update - born
    return correction(age) / correction(update) * min(1.0, age / max(iterations, 1))


def _groups(args: Namespace) -> dict[ParamKey, dict[str, int]]:
    """What tells the young parameters apart, for Megatron, which makes a group of each kind."""
    born = enumerate(args.phd_copy_births, start=1)
    return {
        ParamKey(name=f"*{parameter_name(args.phd_copy_embedding, copy)}"): {BORN: iteration}
        for copy, iteration in born
        if iteration
    }


def _updates(optimizer: Any) -> int | None:
    """How many updates the optimizer has made; None while its state is not there. torch's Adam counts them
    with each parameter, others with each group.
    """
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        for state in one.state.values() if one.optimizer is not None else ():
            if "step" in state:
                return int(state["step"])
        for group in one.param_groups:
            if group["params"] and "step" in group:
                return int(group["step"])
    return None

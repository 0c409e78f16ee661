"""Hooks for Megatron's training loop, which has none: what is called at every iteration, validation and save,
and what takes the scalars that Megatron logs.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from megatron.training import get_timers, global_vars, training, wandb_utils

FUNCTIONS = (
    *("train", "training_log", "print_rank_last", "evaluate", "evaluate_and_print_results"),
    *("save_checkpoint", "maybe_finalize_async_save"),
)
"""Functions that Megatron's loop calls by name, and a HookedLoop replaces by methods."""


class LoopHooks(Protocol):
    """What a HookedLoop calls, on every rank."""

    def loaded(self) -> None:
        """The checkpoint, if any, is loaded, and training begins."""

    def begin(self) -> None:
        """Scalars are about to be logged; called before each iteration's and each validation's."""

    def log(self, iteration: int, seconds_per_iteration: float) -> str:
        """At a log interval: returns the end of Megatron's log line."""

    def trained(self, iteration: int) -> None:
        """An iteration is done and logged."""

    def evaluated(self, kind: str, iteration: int, model_chunks: list[torch.nn.Module]) -> None:
        """A "validation" or "test" is done and logged."""

    def not_evaluated(self, iteration: int) -> None:
        """An evaluation was interrupted."""

    def save(self, iteration: int, save: Callable[[], None]) -> None:
        """Let Megatron save."""

    def wait_for_save(self, wait: Callable[[], None], last: bool) -> None:
        """Let Megatron check on the asynchronous save in progress; ``last``: the training ends."""


class HookedLoop:
    """Stands in for the functions that Megatron's loop calls by name: calls them, and the hooks."""

    def __init__(self, hooks: LoopHooks, scalars: Any = None) -> None:
        """``scalars``: takes what Megatron logs, in place of its SummaryWriter; None leaves Megatron's."""
        self._hooks, self._scalars = hooks, scalars
        self._megatron = {name: getattr(training, name) for name in FUNCTIONS}
        self._line_end = ""
        self._out_of_time = False

    def install(self) -> None:
        for name in FUNCTIONS:
            setattr(training, name, getattr(self, name))
        if self._scalars is not None:
            _set_writers(self._scalars)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._hooks.loaded()
        return self._megatron["train"](*args, **kwargs)

    def training_log(self, loss_dict: dict, total_loss_dict: dict, learning_rate: float, iteration: int,
                     *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        """Megatron's prints its line through print_rank_last."""
        self._hooks.begin()
        if iteration % training.get_args().log_interval == 0:
            # Megatron prints the first iteration of a start before its turn, and counts it again in the next
            # line; where it is its turn, that line would be a mean of two intervals.
            kwargs["is_first_iteration"] = False
            # The counters are raised inside training_log, so this iteration is not in them yet.
            counted = ("advanced iterations", "skipped iterations")
            iterations = 1 + sum(total_loss_dict.get(key, 0) for key in counted)
            seconds = get_timers()("interval-time").elapsed(reset=False) / iterations
            self._line_end = self._hooks.log(iteration, seconds)
        try:
            report = self._megatron["training_log"](
                loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs
            )
        finally:
            self._line_end = ""
        self._hooks.trained(iteration)
        return report

    def print_rank_last(self, message: str) -> None:
        self._megatron["print_rank_last"](message + self._line_end)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        result = self._megatron["evaluate"](*args, **kwargs)
        self._out_of_time = result[2]  # interrupted by --exit-duration-in-mins: there is no loss
        return result

    def evaluate_and_print_results(self, prefix: str, forward_step: Any, data: Any, model: Any,
                                   iteration: int, *args: Any, **kwargs: Any) -> None:  # fmt: skip
        self._hooks.begin()
        results = self._megatron["evaluate_and_print_results"]
        results(prefix, forward_step, data, model, iteration, *args, **kwargs)
        if self._out_of_time:
            self._hooks.not_evaluated(iteration)
        else:
            self._hooks.evaluated("test" if "test set" in prefix else "validation", iteration, model)

    def save_checkpoint(self, iteration: int, *args: Any, **kwargs: Any) -> None:
        save = functools.partial(self._megatron["save_checkpoint"], iteration, *args, **kwargs)
        if kwargs.get("non_persistent_ckpt"):  # in a folder that Megatron manages
            save()
        else:
            self._hooks.save(iteration, save)

    def maybe_finalize_async_save(self, blocking: bool = False, terminate: bool = False) -> None:
        wait = functools.partial(self._megatron["maybe_finalize_async_save"], blocking, terminate)
        self._hooks.wait_for_save(wait, last=terminate)


def _set_writers(scalars: Any) -> None:
    """Let ``scalars`` take what Megatron logs. What Megatron sends to W&B is left out: the recorder sends its
    own lines there, and none twice.
    """
    global_vars._GLOBAL_TENSORBOARD_WRITER = scalars
    if global_vars._GLOBAL_WANDB_WRITER is not None:
        global_vars._GLOBAL_WANDB_WRITER = _WandbWithoutLog(global_vars._GLOBAL_WANDB_WRITER)
        if not hasattr(wandb_utils.on_save_checkpoint_success, "__wrapped__"):
            wandb_utils.on_save_checkpoint_success = _or_warn(wandb_utils.on_save_checkpoint_success)


class _WandbWithoutLog:
    def __init__(self, wandb: Any) -> None:
        self._wandb = wandb

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wandb, name)

    def log(self, *args: Any, **kwargs: Any) -> None:
        return None

    def finish(self) -> None:
        _or_warn(self._wandb.finish)()


def _or_warn(call: Callable[..., Any]) -> Callable[..., None]:
    """W&B is a view of the record: when its own process has died, the training and its saves go on."""

    @functools.wraps(call)
    def warned(*args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:
            print(f"> WARNING: W&B: {call.__name__}: {type(error).__name__}: {error}")

    return warned

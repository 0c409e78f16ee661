"""Hooks for Megatron's training loop."""

from typing import Any
from unittest.mock import Mock, patch


def told(calls: list[tuple[str, tuple, dict]]) -> list[str]:
    """The hooks that run, in order, when Megatron's loop calls each of the functions."""
    import phd.megatron  # noqa: F401 (before Megatron)

    # isort: split
    from megatron.training import training

    from phd.megatron import loop

    events: list[str] = []

    def megatrons(name: str) -> Any:
        def function(*args: object, **kwargs: object) -> object:
            events.append(f"Megatron's {name}")
            if name == "training_log":  # which prints
                training.print_rank_last("iteration 4 |")
            if name == "evaluate_and_print_results":
                training.evaluate()
            return (None, None, timeout) if name == "evaluate" else None

        return function

    class Hooks:
        def __getattr__(self, name: str) -> Any:
            def hook(*args: Any, **kwargs: Any) -> str:
                shown = [str(arg) for arg in args if not callable(arg)]
                events.append(" ".join([name, *shown, *(f"{key}={value}" for key, value in kwargs.items())]))
                for arg in filter(callable, args):
                    arg()
                return " end"

            return hook

    functions = {name: megatrons(name) for name in loop.FUNCTIONS}
    functions["print_rank_last"] = events.append
    timeout = False
    timers = Mock()
    timers.return_value.return_value.elapsed.return_value = 6.0
    with (
        patch.multiple(training, **functions, get_args=lambda: Mock(log_interval=2)),
        patch.object(loop, "get_timers", timers),
    ):
        loop.HookedLoop(Hooks()).install()
        for name, args, kwargs in calls:
            timeout = "out of time" in args
            getattr(training, name)(*args, **kwargs)
    return events


def test_each_function_calls_its_hook(world):
    calls: list[tuple[str, tuple, dict]] = [
        ("train", (), {}),
        ("training_log", ({}, {"advanced iterations": 1, "skipped iterations": 1}, 0.1, 4), {}),
        ("training_log", ({}, {}, 0.1, 5), {}),
        ("evaluate_and_print_results", ("iteration 5", None, None, "chunks", 5), {}),
        ("evaluate_and_print_results", ("iteration 5 on test set", None, None, "chunks", 5), {}),
        ("evaluate_and_print_results", ("iteration 5", None, None, "chunks", 5, "out of time"), {}),
        ("save_checkpoint", (5,), {}),
        ("save_checkpoint", (5,), {"non_persistent_ckpt": True}),
        ("maybe_finalize_async_save", (), {"blocking": True, "terminate": True}),
    ]
    assert world.run(told, calls) == [
        [
            *("loaded", "Megatron's train"),
            *("begin", "log 4 2.0", "Megatron's training_log", "iteration 4 | end", "trained 4"),
            *("begin", "Megatron's training_log", "iteration 4 |", "trained 5"),
            *("begin", "Megatron's evaluate_and_print_results", "Megatron's evaluate"),
            "evaluated validation 5 chunks",
            *("begin", "Megatron's evaluate_and_print_results", "Megatron's evaluate"),
            "evaluated test 5 chunks",
            *("begin", "Megatron's evaluate_and_print_results", "Megatron's evaluate", "not_evaluated 5"),
            *("save 5", "Megatron's save_checkpoint"),
            "Megatron's save_checkpoint",
            *("wait_for_save last=True", "Megatron's maybe_finalize_async_save"),
        ]
    ]

"""How an error is told: one line, from one rank, and the traceback in the run folder."""

import contextlib
import errno
import io
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from phd.run.status import FAILED, UNFINISHED, judge
from tests.trainings import MODEL, TRAINING
from tests.world import megatron_globals

FLAGS = [*MODEL, *TRAINING, "--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "255"]


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as same:
        return same


def judged() -> dict[str, str | None]:
    """What is said of errors before the first iteration is over."""
    import torch
    from megatron.core.dist_checkpointing.core import CheckpointingException
    from torch.distributed.checkpoint.api import CheckpointException

    from phd.training.ending import mistake

    def through_checkpoint(error: Exception) -> BaseException:
        return raised(CheckpointException("load", {0: (raised(error), None)}))  # type: ignore[dict-item]

    errors = {
        "assert": AssertionError("hidden_size must be divisible"),
        "key": KeyError("decoder.layers.qkv"),
        "import": ModuleNotFoundError("No module named 'einops'"),
        "type": TypeError("unsupported operand"),
        "zero": ZeroDivisionError("division by zero"),
        "megatron": CheckpointingException("Global shape mismatch for loaded (1) and expected (2)"),
        "size": through_checkpoint(ValueError("Size mismatch between saved torch.Size([32]) and current")),
        "lacks": through_checkpoint(KeyError("output_layer.weight from model not in state dict")),
        "peer": RuntimeError("Connection closed by peer [127.0.0.1]:42160"),
        "reset": ConnectionResetError(errno.ECONNRESET, "reset"),
        "slow": TimeoutError("read timed out"),
        "cuda": RuntimeError("CUDA error: an illegal memory access was encountered"),
        "memory": torch.OutOfMemoryError("CUDA out of memory"),
        "disk": through_checkpoint(OSError(errno.EIO, "Input/output error")),
        "torch": RuntimeError("a word of torch's"),
    }
    return {name: mistake(raised(error)) for name, error in errors.items()}


COMES_AGAIN = ("assert", "key", "import", "type", "zero", "megatron", "size", "lacks")


def test_what_comes_again_is_told_from_accidents(world):
    (said,) = world.run(judged)
    assert tuple(name for name, line in said.items() if line is not None) == COMES_AGAIN
    assert re.fullmatch(
        r"the training does not start \(ModuleNotFoundError: No module named 'einops', at \w+.py:\d+\): "
        "correct the flag or file that it speaks of",
        said["import"],
    )
    assert "ValueError: Size mismatch between saved torch.Size([32]) and current" in said["size"]


def ends(flags: list[str], place: str, change: Callable) -> tuple[object, str]:
    """Exit code and output of a training in which a function is replaced."""
    import pretrain_phd

    sys.argv = ["pretrain_phd.py", *flags]
    output = io.StringIO()
    code: object = 0
    streams = contextlib.redirect_stdout(output), contextlib.redirect_stderr(output)
    with megatron_globals(), streams[0], streams[1], patch(place, change):
        try:
            pretrain_phd.main()
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            code = repr(error)
    return code, output.getvalue()


def wrong_data(*args: object) -> None:
    raise KeyError("no such split")


def nothing(*args: object) -> None:
    return None


def test_one_rank_tells_what_all_meet(world, tmp_path):
    """In one line; each rank's traceback lies in the run folder, and no start will mend it."""
    run = tmp_path / "run"
    ended = world.run(
        ends, [*FLAGS, "--run-dir", str(run)], "pretrain_phd.build_datasets", wrong_data, ranks=2
    )
    assert [code for code, _ in ended] == [1, 1]
    printed = "\n".join(output for _, output in ended).splitlines()
    (line,) = [line for line in printed if line.startswith("pretrain_phd.py: error: ")]
    assert "the training does not start (KeyError: 'no such split', at test_ending.py:" in line
    assert "Traceback" not in "".join(printed)
    for rank in (0, 1):
        assert "in wrong_data" in (run / "errors" / f"rank{rank}.txt").read_text()
    assert f"; the traceback is in {run}/errors/rank" in line
    code, status = judge(run)
    assert code == FAILED and "KeyError: 'no such split'" in status


def test_a_checkpoint_that_does_not_load(world, tmp_path):
    """What start-up did not find: Megatron's nested tracebacks are one line."""
    run = tmp_path / "run"
    flags = [*FLAGS, "--run-dir", str(run), "--save-interval", "1", "--train-iters", "2"]
    world.pretrain([*flags, "--exit-interval", "1"])
    place = "phd.training.arguments.compare_with_checkpoint"
    for more in (["--hidden-size", "32", "--kv-channels", "16"], ["--qk-layernorm"]):
        again = Path(shutil.copytree(run, tmp_path / more[0]))
        with_run = [*flags, *more, "--run-dir", str(again)]
        ((code, output),) = world.run(ends, with_run, place, nothing)
        errors = [line for line in output.splitlines() if line.startswith("pretrain_phd.py: error: ")]
        assert code == 1 and len(errors) == 1, output
        assert "error: rank 0: the checkpoint does not load (" in errors[0], errors
        assert "Traceback" not in output
        assert judge(again)[0] == FAILED


def fails_in_third(iteration: int) -> None:
    if iteration == 2:
        raise KeyError("a moment of a machine")


def failing_training(flags: list[str]) -> tuple[object, str]:
    from phd.training.hooks import TrainingHooks

    trained = TrainingHooks.trained

    def fail(self: TrainingHooks, iteration: int) -> None:
        trained(self, iteration)
        fails_in_third(iteration)

    return ends(flags, "phd.training.hooks.TrainingHooks.trained", fail)


def test_an_error_in_the_middle_of_a_training_is_no_mistake(world, tmp_path):
    run = tmp_path / "run"
    ((code, _),) = world.run(failing_training, [*FLAGS, "--run-dir", str(run)])
    assert code == repr(KeyError("a moment of a machine"))
    assert judge(run)[0] == UNFINISHED
    assert "in fails_in_third" in (run / "errors" / "rank0.txt").read_text()


def quiet_exit() -> tuple[bool, bool]:
    """Of an end while Megatron loads a checkpoint, and of another."""
    from phd.training.ending import gave_up_loading

    def load_checkpoint() -> None:
        sys.exit()

    found = []
    for end in (load_checkpoint, sys.exit):
        with pytest.raises(SystemExit) as stop:
            end()
        found.append(gave_up_loading(stop.value))
    return found[0], found[1]


def test_megatron_ends_without_an_error_while_loading(world):
    assert world.run(quiet_exit) == [(True, False)]

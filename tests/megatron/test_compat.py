"""Megatron's internals as compat.py patches them for copies."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP]


def tensor_parallel_buffers(copies: list[int]) -> list[tuple]:
    """What Transformer Engine is asked for by --tp-comm-overlap after compat.apply with each of ``copies``,
    and what the argument is then.
    """
    import sys
    from argparse import Namespace
    from unittest.mock import patch

    import phd.megatron  # noqa: F401 (before Megatron)

    # isort: split
    from megatron.training import global_vars, initialize

    from phd.megatron import compat
    from tests.world import megatron_globals

    engine, pytorch = ModuleType("transformer_engine"), ModuleType("transformer_engine.pytorch")
    asked: list[dict] = []
    base = SimpleNamespace(
        initialize_ub=lambda **kwargs: asked.append(kwargs),
        UserBufferQuantizationMode=SimpleNamespace(FP8="fp8", NONE="none"),
    )
    vars(pytorch)["module"] = SimpleNamespace(base=base)
    args = Namespace(
        seq_length=32, micro_batch_size=2, context_parallel_size=2, hidden_size=64, fp8=None,
        tensor_model_parallel_size=2, tp_comm_overlap_cfg=None, tp_comm_bootstrap_backend="nccl",
    )  # fmt: skip
    answers = []
    with (
        megatron_globals(),
        patch.dict(sys.modules, {"transformer_engine": engine, "transformer_engine.pytorch": pytorch}),
        patch.object(initialize, "is_te_min_version", lambda version: True),
    ):
        global_vars._GLOBAL_ARGS = args
        for count in copies:
            compat.apply(count)
            initialize._initialize_tp_communicators()
            answers.append((asked.pop()["shape"], args.micro_batch_size))
    compat.apply(1)
    return answers


def test_buffers_of_overlapped_tensor_parallelism_hold_all_copies(world):
    """seq_length * micro_batch_size * K / CP rows, however often compat is applied; the argument stays."""
    (answers,) = world.run(tensor_parallel_buffers, [1, 3, 2])
    assert answers == [([rows, 64], 2) for rows in (32, 96, 64)]


@contextlib.contextmanager
def handlers_restored() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def handled_signals(hangup: int) -> list[int]:
    """With SIGHUP as whoever started the training has set it."""
    from phd.megatron import compat

    with handlers_restored():
        signal.signal(signal.SIGHUP, hangup)
        signals = compat._ExitSignals(async_save=False)
        return [number for number in SIGNALS if signal.getsignal(number) == signals._handle]


def test_nohup_is_respected(world):
    assert world.run(handled_signals, signal.SIG_IGN) == [[*SIGNALS[:-1]]]
    assert world.run(handled_signals, signal.SIG_DFL) == [[*SIGNALS]]


def interrupted_twice(torchrun: bool) -> tuple[str | None, bool]:
    """The name of the signal that ends the training, and whether a second ^C ends the process at once."""
    from unittest.mock import patch

    from phd.megatron import compat

    with handlers_restored(), patch.dict(os.environ, {"TORCHELASTIC_RUN_ID": "1"} if torchrun else {}):
        if not torchrun:
            os.environ.pop("TORCHELASTIC_RUN_ID", None)
        signals = compat._ExitSignals(async_save=False)
        signal.raise_signal(signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            return signals.name, True
        return signals.name, False


def test_a_second_interrupt_ends_at_once_but_under_torchrun(world):
    """There a terminal sends each rank two of them."""
    assert world.run(interrupted_twice, False) == [("SIGINT", True)]
    assert world.run(interrupted_twice, True) == [("SIGINT", False)]


def preloaded_by_the_fork_server(gpu: bool) -> list[str]:
    """What it imports for the process that saves asynchronously."""
    import multiprocessing
    from unittest.mock import patch

    from phd.megatron import compat, cpu

    preloaded: list[str] = []
    with (
        patch.object(cpu, "needed", lambda: not gpu),
        patch.object(multiprocessing, "set_forkserver_preload", preloaded.extend),
        patch.object(multiprocessing.forkserver, "ensure_running"),
        handlers_restored(),
    ):
        compat._ExitSignals(async_save=True)
    return preloaded


def test_the_fork_server_leaves_cuda_alone_on_a_gpu(world):
    """phd.megatron asks whether there is a GPU: CUDA is initialised then, and no child can use it."""
    assert world.run(preloaded_by_the_fork_server, True) == [["torch"]]
    assert world.run(preloaded_by_the_fork_server, False) == [["phd.megatron.compat"]]


def staged_for_saving() -> tuple:
    """A tensor that is given to the process of asynchronous saves, then changed: what is staged, and by what
    name that process finds the function.
    """
    import pickle
    from functools import partial

    import torch

    from phd.megatron import compat

    # isort: split
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    compat.apply(1)
    moments = torch.zeros(4)
    buckets = [("file", "key", ([("step", b"1")], [("moments", moments)]))]
    # As it is sent to that process, which applies nothing.
    stage = pickle.loads(pickle.dumps(partial(FileSystemWriterAsync.preload_tensors, buckets, True)))
    ((file, key, (data, ((item, tensor),))),) = stage.func(buckets, True)
    moments += 1
    return stage.func.__module__, (file, key, data, item), tensor.tolist()


def test_what_is_saved_asynchronously_is_a_copy(world):
    """The ranks of the world are children, as the saving process is."""
    ((module, names, values),) = world.run(staged_for_saving)
    assert module == "phd.megatron.compat"
    assert names == ("file", "key", [("step", b"1")], "moments")
    assert values == [0, 0, 0, 0]

"""Megatron's internals as they are mended for copies."""

from types import ModuleType, SimpleNamespace


def tensor_parallel_buffers(copies: list[int]) -> list[tuple]:
    """What Transformer Engine is asked for by --tp-comm-overlap after compat.apply with each of ``copies``,
    and what the argument is then.
    """
    import sys
    from argparse import Namespace
    from unittest.mock import patch

    import phd.model  # noqa: F401 (before Megatron)

    # isort: split
    from megatron.training import global_vars, initialize

    from phd.model import compat
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


def staged_for_saving() -> tuple:
    """A tensor that is given to the process of asynchronous saves, then changed: what is staged, and by what
    name that process finds the function.
    """
    import pickle
    from functools import partial

    import torch

    from phd.model import compat

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
    assert module == "phd.model.compat"
    assert names == ("file", "key", [("step", b"1")], "moments")
    assert values == [0, 0, 0, 0]

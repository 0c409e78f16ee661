"""What a training with --train-only trains: by name and number, for its first lines and its record."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state

from phd.megatron.trainable import EMBEDDING, named_parameters
from phd.training.metrics import whole_size


def trained_parameters(model_chunks: list[torch.nn.Module]) -> dict[str, int]:
    """How many elements of each name train in the whole model; every rank of the pipeline group must call
    it.
    """
    ours = [
        (name, whole_size(parameter))
        for chunk in model_chunks
        for name, parameter in named_parameters(chunk)
        if parameter.requires_grad
    ]
    group = parallel_state.get_pipeline_model_parallel_group()
    stages: list[list[tuple[str, int]]] = [[]] * group.size()
    torch.distributed.all_gather_object(stages, ours, group=group)
    trained: dict[str, int] = {}
    for name, size in (each for stage in stages for each in stage):
        trained[name] = trained.get(name, 0) + size
    return trained


def refuse_unknown_words(words: Sequence[str], trained: dict[str, int]) -> None:
    """Check that each word of --train-only lets something train.

    Args:
        trained: as ``trained_parameters`` gives it.

    Raises:
        ValueError: names the words that do not.
    """
    if unknown := [word for word in words if not any(word in name for name in trained)]:
        raise ValueError(
            f"--train-only: no parameter has {' or '.join(map(repr, unknown))} in its name: correct the "
            "word, or leave it out"
        )


def refuse_empty_shards(model_chunks: list[Any], args: Namespace) -> None:
    """Check that the distributed optimizer has something to train on every rank: the states of one that has
    nothing cannot be saved. Every rank of the pipeline group must call it.

    Args:
        model_chunks: wrapped, with their buffers of gradients, of which each rank has an equal share.

    Raises:
        ValueError: it has not.
    """
    if not args.use_distributed_optimizer:
        return
    buckets = [bucket for chunk in model_chunks for buffer in chunk.buffers for bucket in buffer.buckets]
    ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    # padding comes last
    whole = any(each.grad_data.numel() // ranks * (ranks - 1) < each.numel_unpadded for each in buckets)
    empty = torch.tensor(int(not whole), device="cuda")
    group = parallel_state.get_pipeline_model_parallel_group()
    torch.distributed.all_reduce(empty, torch.distributed.ReduceOp.MAX, group=group)
    if empty.item():
        raise ValueError(
            f"--train-only {args.train_only} trains too little for --use-distributed-optimizer: on a "
            f"pipeline stage there is none for some of its {ranks} ranks; leave that flag out"
        )


def describe_trained(trained: dict[str, int], args: Namespace) -> str:
    """The lines that say what trains."""
    lines = [f"> --train-only {args.train_only} trains {sum(trained.values()):,} parameters:"]
    for name, size in trained.items():
        tied = name == EMBEDDING and not args.untie_embeddings_and_output_weights
        lines.append(f">   {name}: {size:,}" + (", which is the output layer too" if tied else ""))
    return "\n".join(lines)

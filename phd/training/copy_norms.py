"""For the record: the distance between a hidden copy's input and its token's embedding."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model

from phd.config import PHDConfig
from phd.run.record import COPY_EMBEDDING_NORM


def copy_embedding_norms(config: PHDConfig, model_chunks: list[torch.nn.Module]) -> dict[str, float]:
    """By the name of a scalar, for each hidden copy: the norm of its vector, or of the difference between its
    table's row and the embedding's, root mean square over the (padded) vocabulary. Zero at first.

    Of the weights after the step. Every rank must call it, and none waits for it where there is no copy
    embedding.
    """
    if config.phd_copy_embedding == "none":
        return {}
    squares = torch.zeros(config.variant.copies.hidden, device="cuda")
    for chunk in model_chunks:
        model = unwrap_model(chunk)
        if hasattr(model, "copy_embedding"):
            embedding = model.embedding.word_embeddings.weight
            _gather(chunk, [embedding, *model.copy_embedding.parameters()])
            squares += model.copy_embedding.squared_distances(embedding)
    # to the last stage too, whose rank keeps the record
    torch.distributed.all_reduce(squares, group=parallel_state.get_model_parallel_group())
    norms = squares.sqrt().tolist()
    return {f"{COPY_EMBEDDING_NORM}-{copy}": norm for copy, norm in enumerate(norms, start=1)}


def _gather(chunk: Any, parameters: list[torch.nn.Parameter]) -> None:
    """With --overlap-param-gather a rank has updated its own part of the weights, and would get those of the
    others in the next forward pass.
    """
    config = getattr(chunk, "ddp_config", None)
    if config is not None and config.overlap_param_gather:
        for group in dict.fromkeys(chunk.param_to_bucket_group[parameter] for parameter in parameters):
            group.start_param_sync(force_sync=True)

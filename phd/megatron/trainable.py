"""Which parameters train (--train-only): the others are frozen as the model is built, before Megatron makes
buffers for gradients and states of the optimizer, which it makes for what trains alone.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.nn import Module, Parameter

EMBEDDING = "embedding.word_embeddings.weight"
"""The name of the model's embedding."""


def named_parameters(model: Module) -> Iterator[tuple[str, Parameter]]:
    """Parameters of a pipeline stage, wrapped or not, by the names that --train-only goes by: with ``*`` for
    the number of a layer, which is another on each stage. A tied embedding has its name on the last stage
    too.
    """
    for name, parameter in model.named_parameters():
        if getattr(parameter, "shared", False):  # the last stage's copy, called output_layer.weight
            yield EMBEDDING, parameter
        else:
            yield re.sub(r"\.\d+\.", ".*.", re.sub(r"^(module\.)+", "", name), count=1), parameter


def freeze_others(model: GPTModel) -> None:
    """Let the parameters of a built pipeline stage train that ``config.train_only`` names, and no others."""
    for name, parameter in named_parameters(model):
        parameter.requires_grad_(model.config.trains(name))
    # Recomputation runs its forward pass without a graph, and its backward pass only where an input asks for
    # a gradient: behind a frozen embedding none would, and nothing in the first layers would train.
    recomputed = model.config.recompute_granularity is not None
    if recomputed and model.pre_process and not any(p.requires_grad for p in model.embedding.parameters()):
        model.embedding.register_forward_hook(_ask_for_gradient)


def _ask_for_gradient(embedding: Module, args: Any, output: Tensor) -> Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output

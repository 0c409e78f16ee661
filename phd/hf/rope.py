"""Rotary positions divided by a scale at inference: a model that was extended by E2-LLM reads as many times
the context that it came with.
"""

import math
from typing import Any

from transformers import LlamaConfig


def scale_rope(config: LlamaConfig, scale: float) -> None:
    """Let ``config`` divide positions by ``scale``, and read as many times its context.

    Raises:
        ValueError: its rotary positions are scaled already.
    """
    if scale == 1:
        return
    rope = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if kind != "default":
        raise ValueError(
            f"--rope-scale: the model's rotary positions are of type {kind} already: leave it out"
        )
    config.rope_parameters = rope | {"rope_type": "linear", "factor": float(scale)}
    config.max_position_embeddings = int(config.max_position_embeddings * scale)


def scale_model(model: Any, scale: float | None, tokens: int | None = None) -> float:
    """The same for a loaded model (a LlamaForCausalLM), by its ``config``. Returns the scale.

    Args:
        scale: as --rope-scale; None for the least whole one at which the model reads ``tokens``.

    Raises:
        ValueError: see :func:`scale_rope`.
    """
    if scale is None:
        assert tokens is not None
        scale = scale_for(tokens, model.config)
    scale_rope(model.config, scale)
    # its buffers are computed, not stored, and fp32 whatever the weights are
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return scale


def scale_for(tokens: int, config: LlamaConfig) -> int:
    """The least whole scale at which a model of ``config`` reads ``tokens``."""
    return max(math.ceil(tokens / config.max_position_embeddings), 1)

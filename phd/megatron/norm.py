"""RMSNorm for the local (no Transformer Engine, no apex) layer spec under sequence parallelism."""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig


class SequenceParallelRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm whose weight is marked ``sequence_parallel``.

    Each tensor-parallel rank normalises its own slice of the sequence, so the weight's gradient must be
    summed over the group; Megatron does that for parameters with the mark. Its own torch norm has none
    and refuses sequence parallelism.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010

"""Adapters merged into the weights that they belong to: the model that is exported is the one that was
trained, and has a Llama model's weights alone.
"""

import torch
from torch import Tensor
from transformers import LlamaConfig

from phd.hf.convert import LAYERS, PROJ, QKV, Read, join_qkv


def merged(read: Read, config: LlamaConfig, scale: float) -> Read:
    """``read`` with the adapters of phd/megatron/lora.py in the weights.

    Args:
        read: of a checkpoint with adapters.
        scale: alpha / rank.
    """

    def read_merged(name: str, layer: int | None) -> Tensor:
        weight = read(name, layer)
        if name == LAYERS + QKV:
            query, key, value = (product(name, f"{part}_", layer) for part in ("query", "key", "value"))
            change = join_qkv(query, key, value, config)
        elif name == LAYERS + PROJ:
            change = product(name, "", layer)
        else:
            return weight
        return (weight.float() + scale * change).to(weight.dtype)

    def product(name: str, part: str, layer: int | None) -> Tensor:
        prefix = name.removesuffix("weight") + f"lora.{part}"
        a, b = (read(prefix + matrix, layer) for matrix in "ab")
        return torch.matmul(b.float(), a.float())

    return read_merged

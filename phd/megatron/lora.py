"""LoRA (arXiv 2106.09685): a frozen linear layer y = W x becomes y = W x + alpha / r * B A x, with A of r
rows and B of r columns; here for query, key, value and the attention's output projection, as in LongLoRA.

Megatron has one layer for query, key and value. Each of the three has matrices of its own, as where they are
layers of their own. B is zero at first, so that the model is then the base model.

Legend: s sequence length, b rows of a batch, h hidden size, r rank, n heads and g query groups on this
tensor-parallel rank, d head dimension.
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from megatron.core.utils import get_tensor_model_parallel_group_if_none
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import Parameter
from torch.nn.functional import linear

from phd.megatron.transformer_config import PHDTransformerConfig


class Adapters(MegatronModule):
    """The matrices of one of Megatron's linear layers."""

    split: dict[str, int] = {}
    """The dimension along which tensor-parallel ranks have a part each, of those that they have not whole."""

    def __init__(self, config: PHDTransformerConfig, group: ProcessGroup) -> None:
        super().__init__(config)
        self.group = group
        assert config.lora_alpha is not None
        self.scale = config.lora_alpha / config.lora_rank
        # of the sequence, which each rank has a slice of
        self.sliced = config.sequence_parallel and group.size() > 1

    def add(self, name: str, rows: int, columns: int) -> None:
        """A matrix of zeros; rows and columns are this rank's."""
        device = torch.device("cpu") if self.config.use_cpu_initialization else torch.cuda.current_device()
        matrix = Parameter(torch.zeros(rows, columns, dtype=self.config.params_dtype, device=device))
        if name in self.split:
            set_tensor_model_parallel_attributes(matrix, is_parallel=True, dim=self.split[name], stride=1)
        else:
            # a gradient of a slice of the sequence, which Megatron sums up over the ranks then
            setattr(matrix, "sequence_parallel", self.sliced)  # noqa: B010
        self.register_parameter(name, matrix)

    def draw(self, seed: str) -> None:
        """A's numbers, uniform in +-1 / sqrt(columns), as peft has them. From ``seed`` alone: alike in all
        layouts, and no other random number of the model depends on them.
        """
        for name, matrix in self.named_parameters():
            if not name.endswith("a"):
                continue
            parts = self.group.size() if name in self.split else 1
            digest = hashlib.sha256(f"LoRA {seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
            whole = torch.rand(matrix.shape[0], matrix.shape[1] * parts, generator=generator) * 2 - 1
            part = whole.chunk(parts, dim=1)[self.group.rank() if parts > 1 else 0]
            with torch.no_grad():
                matrix.copy_(part / whole.shape[1] ** 0.5)


class QKVAdapters(Adapters):
    """Of ``linear_qkv``, whose output is split by query groups."""

    split = {"query_b": 0, "key_b": 0, "value_b": 0}

    def __init__(self, config: PHDTransformerConfig, group: ProcessGroup) -> None:
        super().__init__(config, group)
        self.groups = config.num_query_groups // group.size()
        per_group = {"query": config.num_attention_heads // config.num_query_groups, "key": 1, "value": 1}
        for name, heads in per_group.items():
            self.add(f"{name}_a", config.lora_rank, config.hidden_size)
            self.add(f"{name}_b", self.groups * heads * config.kv_channels, config.lora_rank)

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, h], under sequence parallelism a slice of s -> [s, b, (n + 2 g) d], the rows of each group
        together as ``linear_qkv`` has them.
        """
        low = linear(x, torch.cat([self.query_a, self.key_a, self.value_a])) * self.scale
        if self.sliced:
            low = gather_from_sequence_parallel_region(low, group=self.group)
        else:
            low = copy_to_tensor_model_parallel_region(low, group=self.group)
        matrices = (self.query_b, self.key_b, self.value_b)
        parts = [linear(each, b) for each, b in zip(low.chunk(3, dim=-1), matrices, strict=True)]
        # [s, b, n d] and twice [s, b, g d] -> [s, b, g, (n / g + 2) d]
        return torch.cat([part.unflatten(-1, (self.groups, -1)) for part in parts], dim=-1).flatten(-2)


class ProjAdapters(Adapters):
    """Of ``linear_proj``, whose input is split by heads."""

    split = {"a": 1}

    def __init__(self, config: PHDTransformerConfig, group: ProcessGroup) -> None:
        super().__init__(config, group)
        heads = config.num_attention_heads // group.size()
        self.add("a", config.lora_rank, heads * config.kv_channels)
        self.add("b", config.hidden_size, config.lora_rank)

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, n d] -> [s, b, h], under sequence parallelism a slice of s."""
        low = linear(x, self.a) * self.scale
        if self.sliced:
            low = reduce_scatter_to_sequence_parallel_region(low, group=self.group)
        else:
            low = reduce_from_tensor_model_parallel_region(low, group=self.group)
        return linear(low, self.b)


class Adapted:
    """Comes before one of Megatron's linear layers among the bases of a class: names and checkpoints of its
    own parameters stay what they are.
    """

    adapters: type[Adapters]
    lora: Adapters

    def __init__(
        self, *args: Any, config: PHDTransformerConfig, tp_group: ProcessGroup | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, config=config, tp_group=tp_group, **kwargs)  # type: ignore[call-arg]
        self.lora = self.adapters(config, get_tensor_model_parallel_group_if_none(tp_group))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return output + self.lora(x), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Megatron's, and how ranks share the adapters."""
        assert metadata is not None
        sharded: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        return sharded | make_sharded_tensors_for_checkpoint(
            self.lora.state_dict(prefix="lora.", keep_vars=True),
            prefix,
            {f"lora.{name}": dimension for name, dimension in self.lora.split.items()},
            sharded_offsets,
            tp_group=self.lora.group,
            dp_cp_group=metadata["dp_cp_group"],
        )


@functools.cache
def _adapted(adapters: type[Adapters], layer: type) -> type:
    return type(f"Adapted{layer.__name__}", (Adapted, layer), {"adapters": adapters})


def with_adapters(layer: ModuleSpec) -> ModuleSpec:
    """The spec of a transformer layer with adapters in the slots of its attention's linear layers."""
    attention = layer.submodules.self_attention
    linears = attention.submodules
    qkv, more = linears.linear_qkv, {}
    if layer.submodules.input_layernorm is IdentityOp:
        # Transformer Engine's layer has the norm in it, behind which the adapters begin: so they are two,
        # under the names of one in checkpoints. Never run on a GPU.
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm

        names = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
        qkv, more = TEColumnParallelLinear, {"input_layernorm": TENorm}
        more["sharded_state_dict_keys_map"] = {**layer.submodules.sharded_state_dict_keys_map, **names}
    linears = replace(
        linears,
        linear_qkv=_adapted(QKVAdapters, qkv),
        linear_proj=_adapted(ProjAdapters, linears.linear_proj),
    )
    attention = replace(attention, submodules=linears)
    return replace(layer, submodules=replace(layer.submodules, self_attention=attention, **more))


def draw_adapters(model: GPTModel) -> None:
    """First values of the adapters of a built pipeline stage."""
    for layer in model.decoder.layers:
        for name, adapters in _adapters(layer.self_attention):
            adapters.draw(f"{model.config.phd_seed} {layer.layer_number} {name}")


def _adapters(attention: MegatronModule) -> Iterator[tuple[str, Adapters]]:
    for name in ("linear_qkv", "linear_proj"):
        yield name, getattr(attention, name).lora

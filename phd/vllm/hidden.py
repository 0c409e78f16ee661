"""The rings of hidden keys as vLLM's block manager sees them, and the plan of each of its steps.

Of every layer vLLM sees two caches: the stock one of the originals, and one that takes one block a request
for its whole life, is not offered for prefix hits, and is our own to read and write.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    subclass_attention_backend,
)
from vllm.v1.kv_cache_interface import CircularBufferSpec

from phd.rules.variant import Variant
from phd.vllm.plan import Plan, make_plan
from phd.vllm.refusals import ring_slots
from phd.vllm.settings import all_positions


@dataclass(frozen=True, kw_only=True)
class RingSpec(CircularBufferSpec):
    """One block a request."""

    def max_num_blocks_per_req(self, vllm_config: VllmConfig, max_len: int) -> int:
        """Not 1: vLLM looks up a slot for every position, in places that must be there."""
        del vllm_config
        return -(-max_len // self.block_size)


@dataclass
class RingMetadata:
    """Of a step."""

    blocks: Tensor
    """[n], of each request"""


class RingBuilder(AttentionMetadataBuilder[RingMetadata]):
    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> RingMetadata:
        return RingMetadata(common_attn_metadata.block_table_tensor[:, 0].long())


class RingBackend(AttentionBackend):
    @staticmethod
    def get_name() -> str:
        return "PHD_RING"

    @staticmethod
    def get_impl_cls() -> Any:
        raise NotImplementedError("a ring is read by phd.vllm.model")

    @staticmethod
    def get_builder_cls() -> type[RingBuilder]:
        return RingBuilder


class Ring(nn.Module, AttentionLayerBase):
    """The hidden keys and values of a layer, [blocks, J * g, slots, 2 d] once vLLM has bound them: head
    ``copy * g + group``, keys before values.
    """

    def __init__(
        self, variant: Variant, groups: int, head_size: int, dtype: torch.dtype, prefix: str
    ) -> None:
        super().__init__()
        self.variant, self.groups, self.head_size, self.dtype = variant, groups, head_size, dtype
        self.prefix = prefix
        self.kv_cache = torch.tensor([])
        layers = get_current_vllm_config().compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"Duplicate layer name: {prefix}")
        layers[prefix] = self

    def get_attn_backend(self) -> type[AttentionBackend]:
        return RingBackend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> RingSpec:
        """As large as a block of the originals, or vLLM would give it more slots than divide one."""
        block = vllm_config.cache_config.block_size
        return RingSpec(
            block_size=ring_slots(self.variant, block),
            num_kv_heads=self.variant.copies.hidden * self.groups,
            head_size=self.head_size,
            dtype=self.dtype,
            dcp_sharded=False,
            page_size_padded=2 * block * self.groups * self.head_size * self.dtype.itemsize,
        )

    def forward(self) -> None:
        """It holds no weights."""


def planning(backend: type[AttentionBackend]) -> type[AttentionBackend]:
    """``backend``, whose metadata bring the step's plan as ``phd_plan``, on the device."""
    base: Any = backend.get_builder_cls()

    class PlanningBuilder(base):
        def build(
            self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, *a: Any, **k: Any
        ) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, *a, **k)
            metadata.phd_plan = _plan(self.vllm_config, common_attn_metadata).to(self.device)
            return metadata

    return subclass_attention_backend("PHD", backend, PlanningBuilder)


def _plan(vllm_config: VllmConfig, common: CommonAttentionMetadata) -> Plan:
    ends = common.seq_lens_cpu_upper_bound  # exact, as there is no speculative decoding
    if ends is None:
        ends = common.seq_lens.cpu()
    copies = vllm_config.model_config.hf_config.copies
    everywhere = all_positions(vllm_config)
    return make_plan(common.query_start_loc_cpu, ends, copies, all_columns=everywhere)

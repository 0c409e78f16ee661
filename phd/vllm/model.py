"""PHD-Transformers in vLLM: its own Llama, on the originals and behind them hidden copies of some columns.

vLLM hands over T tokens. In the layers there are N = T + R * J rows, and only the model's edges know T: every
linear layer, norm and rotary embedding is vLLM's on N rows. The last copy's state of each column goes back to
its token's row. K = 1 is vLLM's Llama.

Legend: T tokens, R columns (``phd.vllm.plan``), J = K - 1 hidden copies, h hidden size, g key/value heads and
x query heads for each of them of this rank, d head size, W window.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
)
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    make_empty_intermediate_tensors_factory,
    make_layers,
)
from vllm.platforms import current_platform

from phd.attention.kernels import attention_forward, merge
from phd.hf.configuration import PHDLlamaConfig
from phd.vllm.attend import attend_originals, check_cpu_kernels
from phd.vllm.hidden import Ring, planning
from phd.vllm.plan import Plan, dummy_plan
from phd.vllm.settings import all_positions

LSE_BACKENDS = ("CPU_ATTN", "FLASH_ATTN")


@dataclass
class Step:
    """What all layers of a pass share."""

    tokens: int
    plan: Plan
    metadata: dict[str, Any] | None
    """By layer; None where vLLM measures memory or warms up, without a cache"""
    hidden: int
    ring: int
    """Slots of a ring; 0 for W = 1"""
    dtype: torch.dtype

    @cached_property
    def keys(self) -> Tensor:
        return self.plan.keys(self.ring)

    @cached_property
    def writes(self) -> tuple[Tensor, Tensor]:
        return self.plan.writes(self.ring)

    @cached_property
    def visible(self) -> Tensor:
        """[R, J, W * J], to add to the scores"""
        visible = self.plan.visible(self.hidden).flatten(2)
        return torch.zeros(visible.shape, dtype=self.dtype, device=visible.device).masked_fill_(
            ~visible, float("-inf")
        )


class PHDAttention(LlamaAttention):
    """vLLM's attention for the originals, ours for the hidden copies."""

    step: Step

    def __init__(self, config: PHDLlamaConfig, *args: Any, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(config, *args, prefix=prefix, **kwargs)
        vllm_config = get_current_vllm_config()
        backend = self.attn.attn_backend
        if backend.get_name() not in LSE_BACKENDS:
            raise ValueError(
                f"attention backend {backend.get_name()}: hidden copies need a log-sum-exp, which it does "
                "not return: pass --attention-backend FLASH_ATTN"
            )
        self.attn.attn_backend = planning(backend)
        self.hidden = config.copies.hidden
        self.ring: Ring | None = None
        if config.copies.window > 1:
            dtype = vllm_config.model_config.dtype
            self.ring = Ring(config.variant, self.num_kv_heads, self.head_dim, dtype, f"{prefix}.hidden")

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """[N, h], T originals and then the columns' hidden copies; ``step`` says of which."""
        qkv, _ = self.qkv_proj(hidden_states)
        query, key, value = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        query, key = self.rotary_emb(positions, query, key)
        tokens = self.step.tokens
        originals = self.attn(query[:tokens], key[:tokens], value[:tokens])
        hidden = self._attend(query[tokens:], key[tokens:], value[tokens:])
        out, _ = self.o_proj(torch.cat([originals, hidden]))
        return out

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[R * J, heads * d] -> the same"""
        step, copies, groups, size = self.step, self.hidden, self.num_kv_heads, self.head_dim
        if step.metadata is None:
            return torch.zeros_like(query)
        # [R, g, J * x, d]
        rows = query.view(-1, copies, groups, self.num_heads // groups, size).transpose(1, 2)
        rows = rows.reshape(rows.shape[0], groups, -1, size)
        new = torch.cat([key.view(-1, copies, groups, size), value.view(-1, copies, groups, size)], dim=-1)
        # [R, W, J, g, 2 d] -> [R, g, W * J, 2 d]
        near = self._with_ring(new)[step.keys].permute(0, 3, 1, 2, 4).flatten(2, 3)
        mask = step.visible.repeat_interleave(rows.shape[2] // copies, dim=1).unsqueeze(1)
        keys, values = near.split(size, dim=-1)
        out, lse = attention_forward(rows, keys, values, self.scaling, mask, causal=False)
        self._write_ring(new)
        metadata = step.metadata[self.attn.layer_name]
        merge(out, lse, *attend_originals(self.attn, metadata, step.plan, rows))
        return out.unflatten(2, (copies, -1)).transpose(1, 2).reshape(query.shape)

    def _with_ring(self, new: Tensor) -> Tensor:
        """[R, J, g, 2 d] -> [n * ring + R, J, g, 2 d], behind the rings of all requests"""
        if self.ring is None:
            return new
        held = self.ring.kv_cache[self._blocks()].transpose(1, 2)  # [n, slots, J * g, 2 d]
        return torch.cat([held.flatten(0, 1).unflatten(1, new.shape[1:3]), new])

    def _write_ring(self, new: Tensor) -> None:
        if self.ring is None:
            return
        columns, slots = self.step.writes
        blocks = self._blocks()[self.step.plan.requests[columns]]
        self.ring.kv_cache[blocks, :, slots] = new[columns].flatten(1, 2)

    def _blocks(self) -> Tensor:
        """[n]"""
        assert self.step.metadata is not None and self.ring is not None
        return self.step.metadata[self.ring.prefix].blocks


class PHDDecoderLayer(LlamaDecoderLayer):
    """vLLM's layer with the attention above."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        super().__init__(vllm_config, prefix, config, attn_layer_type=PHDAttention)


class CopyEmbedding(nn.Module):
    """The hidden copies' inputs, as ``phd.hf.copy_embedding`` has them."""

    def __init__(self, config: PHDLlamaConfig, quant_config: Any) -> None:
        super().__init__()
        self.hidden, kind = config.copies.hidden, config.variant.embedding
        count = range(self.hidden)
        shape = config.vocab_size, config.hidden_size
        self.vectors = nn.ParameterList(
            nn.Parameter(torch.zeros(config.hidden_size), requires_grad=False)
            for _ in (count if kind == "vector" else ())
        )
        self.tables = nn.ModuleList(
            VocabParallelEmbedding(*shape, quant_config=quant_config)
            for _ in (count if kind == "table" else ())
        )

    def forward(self, embeddings: Tensor, ids: Tensor | None) -> Tensor:
        """[R, h] of the columns' tokens and [R] -> [R, J, h]"""
        if len(self.tables):
            if ids is None:
                raise ValueError("prompt_embeds: hidden copies enter by tables of token ids: send tokens")
            return torch.stack([table(ids) for table in self.tables], dim=1)
        rows = embeddings.unsqueeze(1)
        if len(self.vectors):
            return rows + torch.stack([*self.vectors])
        return rows.expand(-1, self.hidden, -1)


class PHDModel(nn.Module):
    """vLLM's Llama without its head, for K > 1."""

    hf_to_vllm_mapper = LlamaModel.hf_to_vllm_mapper

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config, quant_config = vllm_config.model_config.hf_config, vllm_config.quant_config
        self.config, self.copies = config, config.copies
        self.everywhere = all_positions(vllm_config)
        self.most_requests = vllm_config.scheduler_config.max_num_seqs
        self.dtype = vllm_config.model_config.dtype
        if current_platform.is_cpu():
            check_cpu_kernels(self.dtype, vllm_config.cache_config.block_size, config.head_dim)
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=quant_config
        )
        self.copy_embedding = CopyEmbedding(config, quant_config)
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: PHDDecoderLayer(vllm_config, prefix),
            prefix=f"{prefix}.layers",
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """[T] -> states [T, h] of the last copies; NaN where no hidden copy ran."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_tokens(input_ids)
        step = self._step(len(positions), inputs_embeds.device)
        tokens = step.plan.tokens
        ids = None if input_ids is None else input_ids[tokens]
        copies = self.copy_embedding(inputs_embeds[tokens], ids).flatten(0, 1)
        states, residual = torch.cat([inputs_embeds, copies]), None  # type: Tensor, Any
        positions = torch.cat([positions, positions[tokens].repeat_interleave(self.copies.hidden)])
        for layer in self.layers:
            layer.self_attn.step = step
            states, residual = layer(positions, states, residual)
        last = slice(step.tokens + self.copies.hidden - 1, None, self.copies.hidden)
        found, _ = self.norm(states[last].contiguous(), residual[last].contiguous())
        out = torch.full_like(inputs_embeds, float("nan"))
        out[tokens] = found
        return out

    def _step(self, tokens: int, device: torch.device) -> Step:
        metadata: Any = get_forward_context().attn_metadata
        first = self.layers[0].self_attn
        if metadata is None:
            requests = tokens if self.everywhere else self.most_requests
            plan = dummy_plan(tokens, requests, self.copies).to(device)
        else:
            plan = metadata[first.attn.layer_name].phd_plan
        ring = 0 if first.ring is None or metadata is None else first.ring.kv_cache.shape[2]
        return Step(tokens, plan, metadata, self.copies.hidden, ring, self.dtype)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


class PHDLlamaForCausalLM(LlamaForCausalLM):
    """What vLLM loads for the architecture of an exported folder."""

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", layer_type: Any = None) -> Any:
        if vllm_config.model_config.hf_config.copies.hidden:
            return PHDModel(vllm_config=vllm_config, prefix=prefix)
        return LlamaModel(vllm_config=vllm_config, prefix=prefix)

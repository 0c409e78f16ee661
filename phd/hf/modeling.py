"""PHD-Transformer for transformers: Llama's weights and layers, K copies of every token, a vanilla KV cache.
Naive repetition too, whose cache holds every copy.

A forward pass chooses a step of ``phd.hf.steps``, which lays out the tokens' copies as rows, attends on every
layer and finds the last copies again; everything between is Llama's.

Legend: b samples, q new slots, n rows of a step, K copies, h hidden size, a query heads, g key/value heads, d
head dimension.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaModel
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.utils import can_return_tuple

from phd.hf.attend import attend_rows
from phd.hf.cache import PHDCache
from phd.hf.configuration import PHDLlamaConfig
from phd.hf.copy_embedding import CopyEmbedding, ResizedTables, initialize
from phd.hf.padding import read_padding, step_padding
from phd.hf.steps import Step
from phd.hf.steps.blocks import BLOCK, BlocksStep
from phd.hf.steps.llama import LlamaStep
from phd.hf.steps.naive import NaiveStep
from phd.hf.steps.rows import RowsStep, layouts_of
from phd.hf.steps.static import StaticStep
from phd.rules.rule import AttentionRule


class PHDLlamaAttention(LlamaAttention):
    """Llama's projections, and the attention of a step."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: PHDCache | None = None,
        *,
        step: Step,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """[b, n, h], as the step lays out the rows; it has a mask of its own."""
        # [b, heads, n, d]
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        # under autocast the projections are in half precision and the angles are not
        query, key, value = (x.to(_compute_dtype(hidden_states)) for x in (query, key, value))
        out = step.attend(self, query, key, value, past_key_values, **kwargs)
        return self.o_proj(out.flatten(2)), None


class PHDLlamaDecoderLayer(LlamaDecoderLayer):
    """Llama's layer with the attention of PHD."""

    def __init__(self, config: PHDLlamaConfig, layer_idx: int) -> None:
        # The grandparent's: Llama's own would make an attention to be replaced. So in both classes below.
        super(LlamaDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = PHDLlamaAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class PHDLlamaModel(ResizedTables, LlamaModel):
    """Llama's stack on originals and hidden copies; returns the last copy's states."""

    config_class = PHDLlamaConfig
    config: PHDLlamaConfig
    _no_split_modules = ["PHDLlamaDecoderLayer", "CopyEmbedding"]

    def __init__(self, config: PHDLlamaConfig) -> None:
        super(LlamaModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.copies, self.rules = config.copies, config.rules
        self.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = torch.nn.ModuleList(
            PHDLlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.copy_embedding = CopyEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if not initialize(module, self.embed_tokens):
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Arguments as Llama's, and ``logits_to_keep``: the slots whose states are asked for.

        Returns:
            states [b, r, h] of the last r slots, down to the first that is asked for.

        Raises:
            ValueError: a mask or positions that are not those of one run of tokens in each row, padded on the
                left or right; a cache that is not a PHDCache; hidden states, attentions or attention to later
                tokens are asked for, here or by the configuration; a rollback of what came as embeddings;
                embeddings where hidden copies have tables.
        """
        _refuse(kwargs, self.config)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, one of them")
        if input_ids is None and self.copy_embedding.tables:
            raise ValueError(
                f"inputs_embeds: hidden copies of {self.config.phd_variant} enter by tables of token ids: "
                "pass input_ids"
            )
        embeddings = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        ids = input_ids
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.gradient_checkpointing and self.training:
            use_cache = False  # layers that run again in the backward fill none
        cache = _checked_cache(past_key_values)
        if use_cache and cache is None:
            cache = PHDCache(self.config)
        if not embeddings.numel():  # no samples, or no new slots
            return BaseModelOutputWithPast(last_hidden_state=self.norm(embeddings), past_key_values=cache)
        count = embeddings.shape[1]
        asked = _slots_asked(logits_to_keep, count)
        step = self._step(embeddings, attention_mask, position_ids, cache, asked)
        if step.recomputed:
            assert cache is not None
            before = cache.last_ids(step.recomputed)
            embeddings = torch.cat([self.embed_tokens(before), embeddings], dim=1)
            ids = None if input_ids is None else torch.cat([before, input_ids], dim=1)
        first = embeddings.shape[1] - step.hidden_slots
        copies = self.copy_embedding(embeddings[:, first:], None if ids is None else ids[:, first:])
        # accelerate may have put it on another device
        states, positions = step.embed(embeddings, copies.to(embeddings.device))
        if cache is not None:
            cache.append_ids(input_ids)
        rotary = self.rotary_emb(states, position_ids=positions)
        for layer in self.layers[: self.config.num_hidden_layers]:
            states = layer(
                states,
                position_embeddings=rotary,
                position_ids=positions[:, :count],
                past_key_values=cache,
                use_cache=use_cache,
                step=step,
                **kwargs,
            )
        states = self.norm(step.last_copies(states)[:, -asked:])
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=cache)

    def _step(
        self,
        embeddings: Tensor,
        attention_mask: Any,
        position_ids: Tensor | None,
        cache: PHDCache | None,
        asked: int,
    ) -> Step:
        """How to compute a pass of embeddings [b, q, h] after the cache's slots, for the last ``asked``."""
        config, count, device = self.config, embeddings.shape[1], embeddings.device
        rules = self.rules[: config.num_hidden_layers]  # as many as it says now, as Llama
        dtype, fused = _compute_dtype(embeddings), self._fuses(embeddings)
        past = 0 if cache is None else cache.get_seq_length()
        # Compiled code must not read it. A prompt is not compiled.
        static = cache is not None and cache.is_static and cache.is_initialized and count == 1
        if not static:
            past = int(past)
        slots = torch.arange(count, device=device) + past
        sparse = any(rule.sparse for rule in rules)
        llama = not self.copies.hidden and not sparse
        if llama and not (static and fused and attention_mask is None):
            if position_ids is None:
                of_slots = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
                padding = step_padding(attention_mask if of_slots else None, None, slots)
                position_ids = padding.positions(slots)
            return LlamaStep(config, embeddings, attention_mask, position_ids, cache)
        if static:
            assert cache is not None
            padding = step_padding(attention_mask, position_ids, slots)
            return StaticStep(rules[0], cache, slots, padding, dtype, fused)
        padding = read_padding(attention_mask, position_ids, past, count, device)
        if self.copies.cached:
            return NaiveStep(config, embeddings, padding, cache, past)
        flash = past == 0 and self._takes_flash(device, dtype)
        # copies as batch rows fit better than blocks here: long sequences, or gradients
        long = count > BLOCK or torch.is_grad_enabled()
        if self.copies.hidden and asked == count and flash and long:
            return RowsStep(rules, count, padding, device)
        of_heads = (keys for rule in rules for _, keys in rule.keys.by_head() if flash and not keys.full)
        layouts = layouts_of([AttentionRule(keys=keys) for keys in of_heads], count, padding, device)
        return BlocksStep(
            config, rules, embeddings, attention_mask, padding, cache, past, asked, fused, layouts
        )

    def _fuses(self, embeddings: Tensor) -> bool:
        """Whether hidden copies, and all copies of a step, attend by the kernel, which has no gradients and
        no fp64.
        """
        takes = embeddings.dtype != torch.float64 and self.config._attn_implementation != "eager"
        return takes and embeddings.is_cuda and attend_rows is not None and not torch.is_grad_enabled()

    def _takes_flash(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether ``phd.attention`` runs: torch's flash attention takes half precision alone on a GPU, the
        reference takes all.
        """
        takes = device.type != "cuda" or dtype in (torch.float16, torch.bfloat16)
        return takes or self.config._attn_implementation == "eager"


def _compute_dtype(states: Tensor) -> torch.dtype:
    """Of queries, keys and values."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _refuse(kwargs: dict[str, Any], config: PHDLlamaConfig) -> None:
    """What Llama does, asked for in a call or in its configuration, and a PHD model does not."""
    for name in ("output_hidden_states", "output_attentions"):
        value = kwargs.pop(name, None)
        if value is None:
            value = getattr(config, name, None)
        if value is not None and value is not False:  # 0 is the number of a layer
            raise ValueError(
                f"{name}: not offered by a PHD model, whose layers run some copies of some tokens: "
                "leave it out"
            )
    causal = kwargs.pop("is_causal", None)
    if causal is False or (causal is None and getattr(config, "is_causal", None) is False):
        raise ValueError("is_causal=False: a PHD model sees no later tokens: leave it out")


def _checked_cache(cache: Cache | None) -> PHDCache | None:
    if cache is not None and not isinstance(cache, PHDCache):
        raise ValueError(
            f"past_key_values is a {type(cache).__name__}: a PHD model needs a PHDCache(model.config), "
            "or None"
        )
    return cache


def _slots_asked(logits_to_keep: int | Tensor, count: int) -> int:
    """The number of last slots that the requested logits span."""
    if isinstance(logits_to_keep, int):
        return min(logits_to_keep, count) or count
    if logits_to_keep.dtype == torch.bool:
        return count
    if not logits_to_keep.numel():
        return 1  # there is no state of no slot; the head leaves it out
    return count - int(_from_the_first(logits_to_keep, count).min())


def _from_the_first(slots: Tensor, count: int) -> Tensor:
    """Indices, those that count from the end included."""
    return torch.where(slots < 0, slots + count, slots)


class PHDLlamaForCausalLM(ResizedTables, LlamaForCausalLM):
    """PHD-Transformer with its language-modeling head."""

    config_class = PHDLlamaConfig
    config: PHDLlamaConfig
    _no_split_modules = ["PHDLlamaDecoderLayer", "CopyEmbedding"]

    def __init__(self, config: PHDLlamaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = PHDLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As LlamaForCausalLM.forward; the fewer logits are asked for, the fewer hidden copies run."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            return_dict=True,
            **kwargs,
        )
        states = outputs.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            if logits_to_keep.dtype != torch.bool:  # slots; the states begin with the lowest one
                given = inputs_embeds if input_ids is None else input_ids
                assert given is not None
                count = given.shape[1]
                logits_to_keep = _from_the_first(logits_to_keep, count).long()
                logits_to_keep = logits_to_keep - (count - _slots_asked(logits_to_keep, count))
            states = slice_logits_to_keep(states, logits_to_keep)
        logits = self.lm_head(states)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As LlamaForCausalLM.generate.

        Raises:
            ValueError: no samples, or prompts without a token.
        """
        for prompts in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")):
            if isinstance(prompts, Tensor) and not prompts.numel():
                raise ValueError(
                    f"generate: prompts of shape {tuple(prompts.shape)}: give at least one, of one token or "
                    "more (a text may begin with the tokenizer's eos_token)"
                )
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered, nor is ``generate_batch``: raises ValueError."""
        raise ValueError(
            "continuous batching is not offered by a PHD model, whose cache it does not know: call generate "
            "with the prompts as one batch, padded on the left"
        )

    def create_masks_for_generate(
        self, *, inputs_embeds: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        """The hook of ``generate`` that makes masks between tokens for static caches. Ours are made from the
        padding, which a step that may be compiled reads off the positions: its mask would grow.
        """
        if not self.model.copies.hidden:
            return create_masks_for_generate(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs
            )
        return attention_mask if inputs_embeds.shape[1] > 1 else None

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        # The hook of ``generate`` that makes a cache when the user brings none.
        _checked_cache(model_kwargs.get("past_key_values"))
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        cache = model_kwargs.get("past_key_values")
        if isinstance(cache, PHDCache) or cache is None:
            return
        if type(cache) not in (DynamicCache, StaticCache):
            name = generation_config.cache_implementation or type(cache).__name__
            raise ValueError(f"cache_implementation {name}: a PHD model takes dynamic, offloaded or static")
        length = cache.get_max_length() if type(cache) is StaticCache else None
        model_kwargs["past_key_values"] = PHDCache(self.config, length, cache.offloading)

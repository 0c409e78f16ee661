"""PHD-Transformer for transformers: Llama's weights and layers, K copies of every token, a vanilla KV cache.

A forward pass runs its layers on the new columns' original tokens and, behind them in the same rows, on the
hidden tokens that ``plan.py`` found needed: all linear layers are single products over both. Only attention
tells them apart. To train, or where logits of all positions are asked for, the copies are batch rows as in
pretrain_phd.py, and the attention is that of ``phd.attention``; so is that of a new prompt's originals on
sparse layers.

Legend: b samples, q new columns, K copies, H = K - 1, r columns with hidden tokens, h hidden size, a query
heads, g key/value heads, d head dimension.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaModel
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.masking_utils import create_causal_mask, create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils import can_return_tuple

from phd.attention import phd_attention
from phd.attention.layout import Layout
from phd.hf.attend import attend, attend_rows
from phd.hf.cache import PHDCache
from phd.hf.configuration import PHDLlamaConfig
from phd.hf.padding import Padding, read_padding, step_padding
from phd.hf.plan import BLOCK, Block, Plan, originals_layout, plan_all, plan_static_decode, plan_step
from phd.hf.rows import take


class PHDLlamaAttention(LlamaAttention):
    """Llama's attention between the copies of every token, over all originals or a sparse layer's."""

    def __init__(self, config: PHDLlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.pattern = config.patterns[layer_idx]

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: PHDCache | None = None,
        *,
        plan: Plan,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """``hidden_states`` [b, q + r*H, h], or as the plan says [b*K, q, h]."""
        # [b, heads, rows, d]
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        # under autocast the projections are in half precision and the angles are not
        query, key, value = (x.to(_compute_dtype(hidden_states)) for x in (query, key, value))
        if plan.copies_as_rows:
            out = self._all_copies(query, key, value, past_key_values, plan)
        else:
            out = self._planned(query, key, value, attention_mask, past_key_values, plan, **kwargs)
        return self.o_proj(out.flatten(2)), None

    def _planned(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        cache: PHDCache | None,
        plan: Plan,
        **kwargs: Any,
    ) -> Tensor:
        """[b, q + r*H, a, d]"""
        new = key[:, :, : plan.originals], value[:, :, : plan.originals]
        hidden = key[:, :, plan.originals :], value[:, :, plan.originals :]
        everything = new
        ring = None
        if cache is not None:
            cached = cache.hidden(self.layer_idx, plan.cached, plan.ring)
            if plan.fused and plan.ring:
                ring = cached
            elif cached:
                hidden = torch.cat([cached[0], hidden[0]], dim=2), torch.cat([cached[1], hidden[1]], dim=2)
            everything = cache.update(*new, self.layer_idx, first=plan.first, padding=plan.padding)
            if plan.columns and ring is None:
                cache.keep_hidden(self.layer_idx, *hidden, plan.keep, plan.end)
        blocks = plan.blocks if self.pattern is None else plan.sparse[self.pattern]
        parts = []
        if plan.decode:
            pass
        elif self.pattern is None:
            name = self.config._attn_implementation
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
            rows = query[:, :, : plan.originals]
            dropout = self.attention_dropout if self.training else 0.0
            scaling = self.scaling
            out, _ = attention(
                self, rows, *everything, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
            parts.append(out)
        elif plan.layout is not None:
            # [b, heads, q, d] -> [q, b, heads, d]
            prompt = (x.permute(2, 0, 1, 3) for x in (query[:, :, : plan.originals], *new))
            parts.append(self._phd_attention(*prompt, copies=1, layout=plan.layout).transpose(0, 1))
        else:
            blocks = [*plan.original_blocks(self.pattern), *blocks]
        if plan.fused and plan.columns and self.pattern is None:
            parts.append(self._attend_rows(query, everything, hidden, ring, plan))
        for block in blocks:
            parts.append(self._attend(query, everything, new, hidden, block))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _attend_rows(
        self,
        query: Tensor,
        originals: tuple[Tensor, Tensor],
        hidden: tuple[Tensor, Tensor],
        ring: tuple[Tensor, Tensor] | None,
        plan: Plan,
    ) -> Tensor:
        """[b, rows, a, d]; takes the step's hidden tokens into the ring."""
        assert attend_rows is not None
        if ring is None:
            ring = hidden[0][:, :, :0], hidden[1][:, :, :0]
        on_device = isinstance(plan.end, Tensor)
        return attend_rows(
            query if plan.decode else query[:, :, plan.originals :],
            *originals,
            *hidden,
            *ring,
            plan.end if on_device else None,
            plan.padding.columns,
            length=0 if on_device else plan.end,
            columns=plan.columns,
            copies=self.config.phd_copies,
            window=self.config.phd_window,
            chunk=self.config.phd_chunk,
            scale=self.scaling,
        )

    def _attend(
        self,
        query: Tensor,
        everything: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
        hidden: tuple[Tensor, Tensor],
        block: Block,
    ) -> Tensor:
        """[b, rows, a, d]"""
        if block.kept is not None:
            everything = take(everything[0], block.kept), take(everything[1], block.kept)
        originals = new if block.split is None else everything
        past_key, past_value = (x[:, :, : block.split] for x in everything)
        key, value = (x[:, :, block.originals] for x in originals)
        if block.hidden.stop > block.hidden.start:
            key, value = (
                torch.cat([x, copies[:, :, block.hidden]], dim=2)
                for x, copies in zip((key, value), hidden, strict=True)
            )
        past, near = (past_key, past_value, block.past_mask), (key, value, block.mask)
        return attend(query[:, :, block.rows], past, near, self.scaling)

    def _all_copies(
        self, query: Tensor, key: Tensor, value: Tensor, cache: PHDCache | None, plan: Plan
    ) -> Tensor:
        """Every copy of every position from the start of the sequence: [b*K, q, a, d]."""
        copies = self.config.phd_copies
        if cache is not None:
            # [b, K, g, q, d]
            keys, values = (x.unflatten(0, (-1, copies)) for x in (key, value))
            cache.update(keys[:, 0], values[:, 0], self.layer_idx, padding=plan.padding)
            # [b, g, n, H, d] -> [b, g, n*H, d]
            first = plan.originals - plan.keep
            keys, values = (x[:, 1:, :, first:].permute(0, 2, 3, 1, 4).flatten(2, 3) for x in (keys, values))
            cache.keep_hidden(self.layer_idx, keys, values, plan.keep, plan.end)
        # [b*K, heads, q, d] -> [q, b*K, heads, d]
        rows = (x.permute(2, 0, 1, 3) for x in (query, key, value))
        return self._phd_attention(*rows, copies=copies, layout=plan.layout).transpose(0, 1)

    def _phd_attention(
        self, query: Tensor, key: Tensor, value: Tensor, *, copies: int, layout: Layout | None
    ) -> Tensor:
        """[q, b*K, heads, d] -> [q, b*K, a, d]; the first copy alone with ``copies`` 1."""
        return phd_attention(
            query,
            key,
            value,
            copies=copies,
            window=self.config.phd_window,
            chunk=self.config.phd_chunk,
            document_starts=None if layout is None else layout.document_starts,
            pattern=self.pattern,
            layout=layout,
            softmax_scale=self.scaling,
            backend="reference" if self.config._attn_implementation == "eager" else "auto",
        )


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


class PHDLlamaModel(LlamaModel):
    """Llama's stack on originals and hidden tokens; returns the last copy's states."""

    config_class = PHDLlamaConfig
    config: PHDLlamaConfig
    _no_split_modules = ["PHDLlamaDecoderLayer"]

    def __init__(self, config: PHDLlamaConfig) -> None:
        super(LlamaModel, self).__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.patterns = config.patterns
        self.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = torch.nn.ModuleList(
            PHDLlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

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
        """Arguments as Llama's, and ``logits_to_keep``: the columns whose states are asked for.

        Returns:
            states [b, n, h] of the last n columns, down to the first that is asked for.

        Raises:
            ValueError: a mask or positions that are not those of one run of tokens in each row, padded on the
                left or right; a cache that is not a PHDCache; hidden states, attentions or attention to later
                tokens are asked for, here or by the configuration; a rollback of what came as embeddings.
        """
        _refuse(kwargs, self.config)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, one of them")
        embeddings = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.gradient_checkpointing and self.training:
            use_cache = False  # layers that run again in the backward fill none
        # as many layers as the configuration says now, as Llama
        depth = self.config.num_hidden_layers
        layers, patterns = self.layers[:depth], self.patterns[:depth]
        cache = _checked_cache(past_key_values)
        if use_cache and cache is None:
            cache = PHDCache(self.config)
        if not embeddings.numel():  # no samples, or no new columns
            return BaseModelOutputWithPast(last_hidden_state=self.norm(embeddings), past_key_values=cache)
        count, device = embeddings.shape[1], embeddings.device

        past = 0 if cache is None else cache.get_seq_length()
        # Compiled code must not read it. A prompt is not compiled.
        compiled = cache is not None and cache.is_static and cache.is_initialized and count == 1
        if not compiled:
            past = int(past)
        columns = torch.arange(count, device=device) + past

        copies = self.config.phd_copies
        asked = _columns_asked(logits_to_keep, count)
        vanilla = copies == 1 and not any(patterns)
        if vanilla and not (compiled and attention_mask is None and self._fuses(embeddings)):
            # Llama, with any mask and positions
            plan = Plan(originals=count)
            if position_ids is None and isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
                plan.padding = step_padding(attention_mask, None, columns)
        else:
            if compiled:
                padding = step_padding(attention_mask, position_ids, columns)
            else:
                padding = read_padding(attention_mask, position_ids, past, count, device)
            plan = self._plan(embeddings, cache, past, asked, padding, compiled)
            position_ids = None  # which say the same as the padding
        if position_ids is None:
            position_ids = plan.padding.positions(columns)

        states, positions = embeddings, position_ids
        if plan.copies_as_rows:
            states = embeddings.repeat_interleave(copies, dim=0)
            if len(positions) > 1:
                positions = positions.repeat_interleave(copies, dim=0)
        elif plan.decode:
            states = embeddings.expand(-1, copies, -1)
        elif plan.columns:
            again = plan.columns - count  # columns before this step's
            hidden = embeddings[:, max(0, -again) :]
            if again > 0:
                assert cache is not None
                hidden = torch.cat([self.embed_tokens(cache.ids(past - again, past)), hidden], dim=1)
            hidden_columns = torch.arange(count - plan.columns, count, device=device) + past
            # [b, q, h] + [b, r*H, h]
            states = torch.cat([embeddings, hidden.repeat_interleave(copies - 1, dim=1)], dim=1)
            hidden_positions = plan.padding.positions(hidden_columns)
            positions = torch.cat([positions, hidden_positions.repeat_interleave(copies - 1, dim=1)], dim=1)
        if cache is not None:
            cache.append_ids(input_ids, past)
        causal_mask = None
        if not plan.decode and not plan.copies_as_rows and None in patterns:
            causal_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=embeddings,
                attention_mask=attention_mask,
                past_key_values=cache,
                position_ids=position_ids,
            )
        rotary = self.rotary_emb(states, position_ids=positions)
        for layer in layers:
            states = layer(
                states,
                attention_mask=causal_mask,
                position_embeddings=rotary,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=use_cache,
                plan=plan,
                **kwargs,
            )
        # the last copy of each column
        if plan.copies_as_rows:
            states = states[copies - 1 :: copies]
        elif copies > 1:
            states = states[:, count + copies - 2 :: copies - 1]
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states[:, -asked:]), past_key_values=cache)

    def _plan(
        self,
        embeddings: Tensor,
        cache: PHDCache | None,
        past: int,
        asked: int,
        padding: Padding,
        compiled: bool,
    ) -> Plan:
        """Of ``embeddings`` [b, q, h] after ``past`` columns, for the last ``asked``."""
        count, device, dtype = embeddings.shape[1], embeddings.device, _compute_dtype(embeddings)
        fused = self._fuses(embeddings)
        if compiled:
            assert cache is not None
            return plan_static_decode(self.config, cache, padding, dtype, device, fused)
        takes_flash = past == 0 and self._takes_flash(device, dtype)
        # copies as rows of the batch serve better than blocks: long sequences, or gradients
        long = count > BLOCK or torch.is_grad_enabled()
        if self.config.phd_copies > 1 and asked == count and takes_flash and long:
            return plan_all(self.config, count, padding, device)
        plan = plan_step(self.config, cache, past, count, asked, padding, dtype, device, fused)
        if any(self.config.patterns) and takes_flash:
            plan.layout = originals_layout(count, padding, device)
        return plan

    def _fuses(self, embeddings: Tensor) -> bool:
        """Whether hidden tokens, and all copies of a step, attend by the kernel, which has no gradients and
        no fp64.
        """
        takes = embeddings.dtype != torch.float64 and self.config._attn_implementation != "eager"
        return takes and embeddings.is_cuda and attend_rows is not None and not torch.is_grad_enabled()

    def _takes_flash(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether ``phd_attention`` runs: torch's flash attention takes half precision alone on a GPU, the
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


def _columns_asked(logits_to_keep: int | Tensor, count: int) -> int:
    """How many of the last columns the asked-for logits span."""
    if isinstance(logits_to_keep, int):
        return min(logits_to_keep, count) or count
    if logits_to_keep.dtype == torch.bool:
        return count
    if not logits_to_keep.numel():
        return 1  # there is no state of no column; the head leaves it out
    return count - int(_from_the_first(logits_to_keep, count).min())


def _from_the_first(columns: Tensor, count: int) -> Tensor:
    """Indices, those that count from the end included."""
    return torch.where(columns < 0, columns + count, columns)


class PHDLlamaForCausalLM(LlamaForCausalLM):
    """PHD-Transformer with its language-modeling head."""

    config_class = PHDLlamaConfig
    config: PHDLlamaConfig
    _no_split_modules = ["PHDLlamaDecoderLayer"]

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
        """As LlamaForCausalLM.forward; the fewer logits are asked for, the fewer hidden tokens run."""
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
            if logits_to_keep.dtype != torch.bool:  # columns, of which the states begin with the least
                given = inputs_embeds if input_ids is None else input_ids
                assert given is not None
                count = given.shape[1]
                logits_to_keep = _from_the_first(logits_to_keep, count).long()
                logits_to_keep = logits_to_keep - (count - _columns_asked(logits_to_keep, count))
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
        if self.config.phd_copies == 1:
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

"""New slots after a growing cache: their originals and, behind them in the same rows, the hidden copies that
the asked-for logits and the next step depend on.

Originals attend as in Llama, or on sparse layers in blocks of slots; hidden copies in blocks, each over all
originals before it and, under a mask, over what is near. Hidden copies are needed of the slots back to the
chunk's start (PHD-CSWA) or to L(W-1) slots before the first asked-for logits (PHD-SWA through L layers), and
not of those whose keys the cache still holds. In decoding all K copies of the new slot are one block.

Legend: b samples, q new slots, r slots with hidden copies, K copies, H = K - 1, a query heads, g key/value
heads, d head dimension.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention

from phd.attention import Layout
from phd.hf.attend import Block, Keys, attend, attend_rows
from phd.hf.bands import additive, band_start, first_needed, rule_mask
from phd.hf.cache import PHDCache
from phd.hf.configuration import PHDLlamaConfig
from phd.hf.heads import by_rule, join, select
from phd.hf.padding import Padding
from phd.hf.retained import gather_index, retained_for, slots_of
from phd.hf.steps import Step
from phd.hf.steps.llama import LlamaStep
from phd.hf.steps.rows import attend_by_layout
from phd.rules.keys import Blocks
from phd.rules.rule import AttentionRule

BLOCK = 64
"""Slots whose hidden copies are attended for at a time: bounds the masks."""
SLICE = 256
"""Slots whose originals are attended for at a time on a sparse layer: bounds the keys that they gather."""


class BlocksStep(Step):
    """Reads sizes on the host.

    Args:
        embeddings: [b, q, h] of the new slots.
        past: slots in the cache.
        asked: how many of the last slots' logits are asked for.
        fused: whether hidden copies attend by ``phd.attention.kernels.triton_rows`` where layers are full.
        layouts: by which a prompt's originals attend on sparse layers; empty: in blocks.

    Raises:
        ValueError: after a rollback, a sparse layer no longer has what hidden copies see.
    """

    def __init__(
        self,
        config: PHDLlamaConfig,
        rules: tuple[AttentionRule, ...],
        embeddings: Tensor,
        attention_mask: Any,
        padding: Padding,
        cache: PHDCache | None,
        past: int,
        asked: int,
        fused: bool,
        layouts: dict[AttentionRule, Layout],
    ) -> None:
        super().__init__()
        self.copies, self.rules, self.padding = rules[0].copies, rules, padding
        self.past, self.end = past, past + embeddings.shape[1]
        first_asked, following = self.end - asked, self.end
        if cache is not None and cache.records_past:
            # After a rollback sparse layers have evicted keys that recomputation would need: the hidden keys
            # of this whole step are retained; of a prompt, whose originals are all there, those asked for.
            following = first_asked = past or first_asked
        self.retained = self.end - band_start(self.copies, following, padding)
        """the last slots whose hidden keys the next step may see"""
        self.first, self.cached = self._first_hidden(cache, first_asked)
        """first slot whose hidden copies run (``end``: none); slots before it whose hidden keys are cached"""
        self.recomputed, self.hidden_slots = max(0, past - self.first), self.end - self.first
        if cache is not None:
            cache.check_reach(min(self.first, past))
        self.decodes = self.first == past == self.end - 1
        """whether all copies of the one new slot attend at once"""
        self.fused, self.layouts = fused, {} if self.decodes else layouts
        self.originals = None
        """of full layers, a vanilla model's"""
        if not self.decodes and any(keys.full for rule in rules for _, keys in rule.keys.by_head()):
            positions = padding.positions(torch.arange(past, self.end, device=embeddings.device))
            self.originals = LlamaStep(config, embeddings, attention_mask, positions, cache)
        self._blocks: dict[tuple[AttentionRule, torch.device], list[Block]] = {}

    def _first_hidden(self, cache: PHDCache | None, first_asked: int) -> tuple[int, int]:
        if not self.copies.hidden:
            return self.end, 0
        first = first_needed(self.copies, len(self.rules), first_asked, self.padding)
        if first < self.past:
            assert cache is not None
            needed = self.past - band_start(self.copies, self.past, self.padding)
            if cache.hidden_slots() >= needed:
                return self.past, needed
        return first, 0

    def embed(self, embeddings: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        """[b, q + r*H, h]; [b, K, h] in decoding."""
        slots = torch.arange(min(self.first, self.past), self.end, device=embeddings.device)
        positions = self.padding.positions(slots)
        count, hidden = self.end - self.past, self.hidden_slots
        if self.decodes:
            return copies[:, 0], positions
        if not hidden:  # K = 1
            return embeddings, positions
        states = torch.cat([embeddings[:, -count:], copies[:, :, 1:].flatten(1, 2)], dim=1)
        of_hidden = positions[:, -hidden:].repeat_interleave(self.copies.hidden, dim=1)
        return states, torch.cat([positions[:, -count:], of_hidden], dim=1)

    def last_copies(self, states: Tensor) -> Tensor:
        if not self.copies.hidden:
            return states
        return states[:, self.end - self.past + self.copies.hidden - 1 :: self.copies.hidden]

    def attend(
        self,
        layer: LlamaAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: PHDCache | None,
        **kwargs: Any,
    ) -> Tensor:
        count, rule = self.end - self.past, self.rules[layer.layer_idx]
        new, hidden = ((key[:, :, x], value[:, :, x]) for x in (slice(count), slice(count, None)))
        originals: Any = new
        if cache is not None:
            memory = cache.phd_layers[layer.layer_idx]
            if self.cached:
                before = memory.hidden(self.cached)
                hidden = torch.cat([before[0], hidden[0]], dim=2), torch.cat([before[1], hidden[1]], dim=2)
            first = min(self.first, self.past)
            originals = cache.update(*new, layer.layer_idx, first=first, padding=self.padding)
            if self.first < self.end:
                memory.retain_hidden(*hidden, self.retained)
        if rule.keys.heads is None:
            return self._attend(layer, rule, query, new, originals, hidden, **kwargs)
        groups, each = by_rule(rule.keys), query.shape[1] // rule.keys.heads
        out = []
        for index, (heads, keys) in enumerate(groups):
            of_new, of_hidden = ((select(x[0], heads), select(x[1], heads)) for x in (new, hidden))
            of_all = of_new if cache is None else (originals[0][index], originals[1][index])
            of_heads = AttentionRule(rule.copies, keys)
            queries = select(query, heads, each)
            out.append(self._attend(layer, of_heads, queries, of_new, of_all, of_hidden, **kwargs))
        return join(out, [heads for heads, _ in groups])

    def _attend(
        self,
        layer: LlamaAttention,
        rule: AttentionRule,
        query: Tensor,
        new: Keys,
        originals: Keys,
        hidden: Keys,
        **kwargs: Any,
    ) -> Tensor:
        """Of heads with one rule: [b, rows, a, d].

        Args:
            new: of this step's originals.
            originals: of all that the cache gives.
            hidden: of the cache's hidden copies and this step's.
        """
        parts, rows = [], query[:, :, : self.end - self.past]
        if not rule.sparse and self.originals is not None:
            parts.append(self.originals.attend(layer, rows, *originals, cache=None, **kwargs))
        elif rule.sparse and self.layouts:
            layout = self.layouts[AttentionRule(keys=rule.keys)]
            parts.append(attend_by_layout(layer, rows, *new, layout))
        if not rule.sparse and self.fused and self.first < self.end:
            parts.append(self._attend_fused(layer, query, originals, hidden))
        for block in self.blocks(rule, query):
            past, near = block.parts(originals, hidden)
            parts.append(attend(query[:, :, block.rows], past, near, layer.scaling))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _attend_fused(self, layer: LlamaAttention, query: Tensor, originals: Keys, hidden: Keys) -> Tensor:
        """Hidden copies, or all of the new slot, by one kernel: [b, rows, a, d]."""
        assert attend_rows is not None
        return attend_rows(
            query if self.decodes else query[:, :, self.end - self.past :],
            *originals,
            *hidden,
            *(x[:, :, :0] for x in hidden),  # no ring
            None,
            self.padding.counts,
            length=self.end,
            columns=self.end - self.first,
            copies=self.copies.count,
            window=self.copies.window,
            chunk=self.copies.chunk,
            scale=layer.scaling,
        )

    def blocks(self, rule: AttentionRule, like: Tensor) -> list[Block]:
        """Of layers with this rule, made once for all; masks have the dtype and device of ``like``."""
        key = rule, like.device
        if key not in self._blocks:
            self._blocks[key] = []
            if rule.sparse and not self.layouts and not self.decodes:
                self._blocks[key] += self._blocks_of_originals(cast(Blocks, rule.keys), like)
            if rule.sparse or not self.fused:
                self._blocks[key] += self._blocks_of_copies(rule, like)
        return self._blocks[key]

    def _blocks_of_originals(self, kept: Blocks, like: Tensor) -> Iterator[Block]:
        """Of the new slots' originals on a sparse layer."""
        for begin in range(self.past, self.end, SLICE):
            stop = min(begin + SLICE, self.end)
            query = torch.arange(begin, stop, device=like.device)
            mask = None
            if stop - begin > 1 or self.padding.counts is not None:
                key = self._slots(kept, begin, stop, like)
                mask = rule_mask(
                    AttentionRule(self.copies, kept),
                    (query, torch.zeros_like(query)),
                    (key, torch.zeros_like(key)),
                    self.padding,
                    like.dtype,
                )
            yield Block(
                rows=slice(begin - self.past, stop - self.past),
                retained=self._retained(kept, begin, stop, like),
                split=0,
                stop=None,
                past_mask=None,
                hidden=slice(0, 0),
                mask=mask,
            )

    def _blocks_of_copies(self, rule: AttentionRule, like: Tensor) -> Iterator[Block]:
        """Of the hidden copies; in decoding of all copies of the new slot."""
        device, width = like.device, self.copies.hidden
        copies = torch.arange(0 if self.decodes else 1, width + 1, device=device)
        row = 0 if self.decodes else self.end - self.past
        base = self.first - self.cached
        for begin in range(self.first, self.end, BLOCK):
            stop = min(begin + BLOCK, self.end)
            slots = torch.arange(begin, stop, device=device)
            query = slots.repeat_interleave(len(copies)), copies.repeat(len(slots))
            low = max(base, begin - self.copies.window + 1)
            keys = torch.arange(low, stop, device=device).repeat_interleave(width)
            key_copies = torch.arange(1, width + 1, device=device).repeat(stop - low)
            key = torch.cat([slots, keys]), torch.cat([torch.zeros_like(slots), key_copies])
            split, past_mask, retained = self._past(rule, begin, stop, query, like)
            yield Block(
                rows=slice(row, row + len(query[0])),
                retained=retained,
                split=split,
                stop=split + stop - begin,
                past_mask=past_mask,
                hidden=slice((low - base) * width, (stop - base) * width),
                mask=rule_mask(rule, query, key, self.padding, like.dtype),
            )
            row += len(query[0])

    def _past(
        self, rule: AttentionRule, begin: int, stop: int, query: tuple[Tensor, Tensor], like: Tensor
    ) -> tuple[int, Tensor | None, Tensor | None]:
        """``split``, ``past_mask`` and ``retained`` of a block of hidden copies."""
        pads, mask, kept = self.padding.counts, None, cast(Blocks, rule.keys)
        if not rule.sparse:
            if pads is not None:
                real = torch.arange(begin, device=like.device) >= pads[:, None]
                mask = additive(real[:, None, None], like.dtype).expand(-1, -1, len(query[0]), -1)
            return begin, mask, None
        held = retained_for(kept, begin, self.padding)
        # queries in one of the rule's blocks see the same originals before it
        if pads is not None or begin // kept.block != (stop - 1) // kept.block:
            key = self._slots(kept, begin, begin, like)
            mask = rule_mask(rule, query, (key, torch.zeros_like(key)), self.padding, like.dtype)
        split = held.global_rows + begin - held.start
        return split, mask, self._retained(kept, begin, stop, like)

    def _slots(self, kept: Blocks, begin: int, stop: int, like: Tensor) -> Tensor:
        """Of the originals that a block sees, [1, n] or [b, 1, n]."""
        held = retained_for(kept, begin, self.padding)
        return slots_of(kept, held, stop, self.padding, like.device).unsqueeze(-2)

    def _retained(self, kept: Blocks, begin: int, stop: int, like: Tensor) -> Tensor | None:
        """Their rows among those that the layer gives; None if they are the same."""
        held = retained_for(kept, min(self.first, self.past), self.padding)
        if stop == self.end and retained_for(kept, begin, self.padding) == held:
            return None
        return gather_index(self._slots(kept, begin, stop, like).squeeze(-2), held, self.end)

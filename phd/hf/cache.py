"""The KV cache of a PHD-Transformer: the original tokens' keys and values, which are a vanilla model's, and
those of the hidden copies that the next position still sees. Sparse layers evict the originals that no later
position sees. Naive repetition has every copy cached.

A *slot* is a place in the batch's tensors and in the cache, a *position* counts a sample's own tokens: with
left padding a sample's position is its slot less its padding.

Legend: b samples, g key/value heads, t cached slots, n slots with hidden copies, H = K - 1 hidden copies of a
slot, d head dimension.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from phd.hf.configuration import PHDLlamaConfig
from phd.hf.heads import by_rule, select
from phd.hf.padding import UNPADDED, Padding
from phd.hf.retained import Retained, first_recoverable_slot, gather, gather_index, retained_for, slots_of
from phd.rules.keys import Blocks
from phd.rules.rule import AttentionRule


class PHDDynamicLayer(DynamicLayer):
    """Originals grow. The hidden copies are those of the last n slots, in order: [b, g, n*H, d]."""

    hidden_keys: Tensor | None = None
    hidden_values: Tensor | None = None
    record_past = False
    """whether what the next step no longer needs is retained too"""
    first_recoverable_slot = 0
    """from which on queries find here all they see"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def stores(self) -> "list[PHDDynamicLayer]":
        """Of the originals, which lie in one place unless heads differ."""
        return [self]

    def reset(self) -> None:
        super().reset()
        self.hidden_keys = self.hidden_values = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._map_hidden(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._map_hidden(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._map_hidden(lambda x: x[indices, ...])

    def hidden(self, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the last ``slots`` slots, [b, g, slots*H, d] each."""
        assert self.hidden_keys is not None and self.hidden_values is not None
        rows = slots * self.width
        return self.hidden_keys[:, :, -rows:], self.hidden_values[:, :, -rows:]

    def retain_hidden(self, keys: Tensor, values: Tensor, slots: int) -> None:
        """Retain the last ``slots`` of these. A copy: a view would keep the whole step alive."""
        first = keys.shape[2] - slots * self.width
        self.hidden_keys, self.hidden_values = keys[:, :, first:].clone(), values[:, :, first:].clone()

    def drop_hidden(self, slots: int) -> None:
        """Remove the hidden copies of the last ``slots`` slots."""
        if self.hidden_keys is not None:
            rest = max(0, self.hidden_keys.shape[2] - slots * self.width)
            self._map_hidden(lambda x: x[:, :, :rest].clone())

    def _map_hidden(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.hidden_keys is not None and self.hidden_values is not None:
            self.hidden_keys, self.hidden_values = function(self.hidden_keys), function(self.hidden_values)


class PHDSparseLayer(PHDDynamicLayer):
    """Originals that a query of the next slot still sees, in the order of ``phd.hf.retained``."""

    def __init__(self, kept: Blocks, width: int) -> None:
        super().__init__(width)
        self.kept = kept
        self.record_past = False
        self._forget()

    def _forget(self) -> None:
        self.length = 0
        """slots seen so far"""
        self.retained = Retained()
        """as they lie in ``keys`` and ``values``"""
        self.first_recoverable_slot = 0

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,
        first: int | None = None,
        padding: Padding = UNPADDED,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Append slots; then evict what the next does not see.

        Args:
            first: first slot of which queries run in this step, that of ``key_states`` or one before.

        Returns:
            keys and values in the rows for ``first``.
        """
        self._evict(self.length if first is None else first, padding)
        keys, values = super().update(key_states, value_states)
        self.length += key_states.shape[2]
        if not self.record_past:
            self._evict(self.length, padding)
        return keys, values

    def _evict(self, slot: int, padding: Padding) -> None:
        """Retain what queries from ``slot`` on see."""
        wanted = retained_for(self.kept, slot, padding)
        if self.keys is None or self.values is None or wanted == self.retained:
            return
        slots = slots_of(self.kept, wanted, self.length, padding, self.keys.device)
        index = gather_index(slots, self.retained, self.length)
        self.keys, self.values = gather(self.keys, index), gather(self.values, index)
        self.retained = wanted
        self.first_recoverable_slot = first_recoverable_slot(self.kept, wanted, padding)

    def activate_past_recording(self) -> None:
        """Until the next step, retain what this one no longer needs too: it may be rolled back."""
        self.record_past = True

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.length -= abs(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self._forget()


class PHDByHeadLayer(PHDDynamicLayer):
    """Originals of the heads of each rule in a layer of their own, full or sparse; hidden copies of all heads
    here.
    """

    def __init__(self, rule: AttentionRule) -> None:
        super().__init__(rule.copies.hidden)
        groups = by_rule(rule.keys)
        self.heads = [heads for heads, _ in groups]
        self.groups = [_growing(AttentionRule(rule.copies, keys)) for _, keys in groups]

    def stores(self) -> list[PHDDynamicLayer]:
        return self.groups

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Append slots.

        Returns:
            keys and values of each rule's heads.
        """
        self.is_initialized = True
        pairs = [
            layer.update(select(key_states, heads), select(value_states, heads), *args, **kwargs)
            for heads, layer in zip(self.heads, self.groups, strict=True)
        ]
        return tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs)

    def activate_past_recording(self) -> None:
        self.record_past = True
        for layer in self.groups:
            if isinstance(layer, PHDSparseLayer):
                layer.activate_past_recording()

    @property
    def first_recoverable_slot(self) -> int:  # type: ignore[override]
        return max(layer.first_recoverable_slot for layer in self.groups)

    def get_seq_length(self) -> int:
        return self.groups[0].get_seq_length()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True
        for heads, layer in zip(self.heads, self.groups, strict=True):
            layer.lazy_initialization(select(key_states, heads), select(value_states, heads))

    def crop(self, tokens_to_remove: int) -> None:
        for layer in self.groups:
            layer.crop(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        for layer in self.groups:
            layer.reset()

    def offload(self) -> None:
        for layer in self.groups:
            layer.offload()

    def prefetch(self) -> None:
        for layer in self.groups:
            layer.prefetch()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        for layer in self.groups:
            layer.reorder_cache(beam_idx)
        self._map_hidden(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        for layer in self.groups:
            layer.batch_repeat_interleave(repeats)
        self._map_hidden(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        for layer in self.groups:
            layer.batch_select_indices(indices)
        self._map_hidden(lambda x: x[indices, ...])


class PHDNaiveLayer(PHDDynamicLayer):
    """Every copy of every slot, in order: [b, g, t*K, d]. None of them is hidden from later slots."""

    def __init__(self, copies: int) -> None:
        super().__init__(0)
        self.copies = copies

    def get_seq_length(self) -> int:
        return super().get_seq_length() // self.copies

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of a mask for ``query_length`` rows: it counts copies."""
        return super().get_seq_length() + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove * self.copies)


class PHDStaticLayer(StaticLayer):
    """Originals in a buffer of ``max_cache_len`` slots; hidden copies in a ring of W - 1, [b, g, (W-1)*H, d]:
    those of slot c lie at c mod (W - 1).
    """

    hidden_keys: Tensor
    hidden_values: Tensor

    def __init__(self, max_cache_len: int, ring: int, width: int) -> None:
        super().__init__(max_cache_len)
        self.ring, self.width = ring, width

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        shape = (self.batch_size, self.num_heads, self.ring * self.width)
        self.hidden_keys = key_states.new_zeros((*shape, self.k_head_dim))
        self.hidden_values = key_states.new_zeros((*shape, self.v_head_dim))
        if not torch.compiler.is_compiling():
            torch._dynamo.mark_static_address(self.hidden_keys)
            torch._dynamo.mark_static_address(self.hidden_values)

    def hidden(self, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the last ``slots`` slots, in order."""
        index = self._ring_index(slots)
        keys, values = (
            x.unflatten(2, (self.ring, self.width)).index_select(2, index).flatten(2, 3)
            for x in (self.hidden_keys, self.hidden_values)
        )
        return keys, values

    def retain_hidden(self, keys: Tensor, values: Tensor, slots: int) -> None:
        """Put the last ``slots`` of these into the ring; the originals of all of them are in the buffer."""
        slots = min(slots, self.ring)
        if not slots:
            return
        index = self._ring_index(slots)
        for ring, new in ((self.hidden_keys, keys), (self.hidden_values, values)):
            new = new[:, :, new.shape[2] - slots * self.width :].unflatten(2, (slots, self.width))
            ring.unflatten(2, (self.ring, self.width)).index_copy_(2, index, new)

    def _ring_index(self, slots: int) -> Tensor:
        """The ring indices of the last ``slots`` slots."""
        return (torch.arange(-slots, 0, device=self.hidden_keys.device) + self.cumulative_length) % self.ring

    def reset(self) -> None:
        super().reset()
        if self.is_initialized:
            self.hidden_keys.zero_()
            self.hidden_values.zero_()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        if self.is_initialized:
            for ring in (self.hidden_keys, self.hidden_values):
                ring.copy_(ring.index_select(0, beam_idx.to(ring.device)))


class PHDCache(Cache):
    """Cache of a PHDLlamaModel. What ``model.generate`` makes, and what to pass to it as ``past_key_values``.

    Besides keys and values it holds the token ids: they bring back the hidden copies after a rollback.

    Args:
        config: of the model.
        max_cache_len: slots to allocate at once, for torch.compile and CUDA graphs; None grows.
        offloading: hold the originals of layers that are not at work in host memory.

    Raises:
        ValueError: ``max_cache_len`` for a model with sparse layers, whose originals have no fixed places, or
            of naive repetition.
    """

    def __init__(
        self, config: PHDLlamaConfig, max_cache_len: int | None = None, offloading: bool = False
    ) -> None:
        rules, self.width = config.rules, config.copies.hidden
        self.phd_layers: list[PHDDynamicLayer] | list[PHDStaticLayer]
        if max_cache_len is None:
            self.phd_layers = [_growing(rule) for rule in rules]
        elif config.copies.cached:
            raise ValueError(
                "a static cache: naive repetition takes a growing one alone: leave out max_cache_len, or "
                "cache_implementation"
            )
        elif any(rule.sparse for rule in rules):
            raise ValueError(
                "a static cache: a model with sparse layers takes a growing one alone: leave out "
                "max_cache_len, or cache_implementation"
            )
        else:
            self.phd_layers = [
                PHDStaticLayer(max_cache_len, config.copies.window - 1, self.width) for _ in rules
            ]
        super().__init__(layers=[*self.phd_layers], offloading=offloading)
        self.input_ids: Tensor | None = None
        """[b, t]; None while there is nothing in the cache, or if some of it came as embeddings"""

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Of masks: the keys before a step's, of which naive repetition has K a slot."""
        layer = self.phd_layers[layer_idx]
        if isinstance(layer, PHDNaiveLayer):
            return layer.get_mask_sizes(0)[0]
        return super().get_query_offset(layer_idx)

    @property
    def is_static(self) -> bool:
        return isinstance(self.phd_layers[0], PHDStaticLayer)

    @property
    def records_past(self) -> bool:
        """Whether sparse layers retain what the next step no longer needs, for a rollback."""
        return any(layer.record_past for layer in self._growing_layers())

    def _growing_layers(self) -> list[PHDDynamicLayer]:
        return [layer for layer in self.phd_layers if isinstance(layer, PHDDynamicLayer)]

    def hidden_slots(self) -> int:
        """How many of the last slots have their hidden copies here, or room for them in a static cache."""
        keys = self.phd_layers[0].hidden_keys
        return 0 if keys is None else keys.shape[2] // self.width

    def check_reach(self, slot: int) -> None:
        """Raise ValueError if sparse layers have evicted keys that queries of ``slot`` see."""
        first = max((layer.first_recoverable_slot for layer in self._growing_layers()), default=0)
        if slot < first:
            raise ValueError(
                f"the cache cannot go back to slot {slot}: its sparse layers have evicted keys that slots "
                f"before {first} see. Run the prompt again with a new cache (only a step of your own, "
                "not those of generate, can be taken back: call activate_past_recording() before it)"
            )

    def nbytes(self) -> int:
        """Bytes of all keys and values, as ``phd.rules.variant.Variant.kv_cache_bytes`` tells
        beforehand."""
        names = ("keys", "values", "hidden_keys", "hidden_values")
        # those of some heads, and the layer around them that has the hidden copies
        layers = {*self.layers, *(store for layer in self._growing_layers() for store in layer.stores())}
        tensors = (getattr(layer, name, None) for layer in layers for name in names)
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)

    def last_ids(self, slots: int) -> Tensor:
        """[b, slots], of the last slots in the cache."""
        if self.input_ids is None:
            raise ValueError(
                "the hidden copies of the cached prompt are gone and cannot be brought back: it was passed "
                "as inputs_embeds, of which the cache keeps no ids. Run the prompt again"
            )
        return self.input_ids[:, -slots:]

    def append_ids(self, input_ids: Tensor | None) -> None:
        """Store the ids of new slots, for a rollback into a window. A static cache stores none."""
        if self.is_static:
            return
        if input_ids is None:
            self.input_ids = None
        elif self.get_seq_length() == 0:
            self.input_ids = input_ids.clone()
        elif self.input_ids is not None:
            self.input_ids = torch.cat([self.input_ids, input_ids], dim=1)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` slots; the next step recomputes the hidden copies that it
        needs.

        Raises:
            ValueError: sparse layers have evicted keys that the next step would see.
        """
        if tokens_to_remove < 0:
            self.check_reach(self.get_seq_length() + tokens_to_remove)
        super().crop(tokens_to_remove)
        if removed := abs(tokens_to_remove):
            self._drop_hidden(removed)
            self._map_ids(lambda x: x[:, :-removed])

    def drop_hidden(self) -> None:
        """Retain the originals alone, a vanilla model's cache: what to store of a prompt for later. Those of
        sparse layers may be too few to bring the hidden copies back: the next step then raises ValueError.
        Naive repetition has nothing to drop: later slots see every copy.
        """
        self._drop_hidden(self.hidden_slots())

    def _drop_hidden(self, slots: int) -> None:
        for layer in self.phd_layers:
            if isinstance(layer, PHDStaticLayer):
                raise ValueError("a static cache cannot be rolled back: leave out max_cache_len")
            layer.drop_hidden(slots)

    def reset(self) -> None:
        super().reset()
        self.input_ids = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._map_ids(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._map_ids(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._map_ids(lambda x: x[indices, ...])

    def _map_ids(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.input_ids is not None:
            self.input_ids = function(self.input_ids)


def _growing(rule: AttentionRule) -> PHDDynamicLayer:
    if rule.copies.cached:
        return PHDNaiveLayer(rule.copies.count)
    if rule.keys.heads is not None:
        return PHDByHeadLayer(rule)
    if rule.sparse:
        return PHDSparseLayer(cast(Blocks, rule.keys), rule.copies.hidden)
    return PHDDynamicLayer(rule.copies.hidden)

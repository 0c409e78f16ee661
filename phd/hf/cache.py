"""The KV cache of a PHD-Transformer: the original tokens' keys and values, which are a vanilla model's, and
those of the hidden tokens that the next position still sees. Sparse layers let go of the originals that no
later position sees.

A *column* is a place in the batch's tensors, a *position* counts a sample's own tokens: with left padding a
sample's position is its column less its padding. Windows are alike in both; chunks follow positions.

Legend: b samples, g key/value heads, t cached columns, n columns with hidden tokens, H = K - 1 hidden tokens
of a column, d head dimension.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from phd.attention.pattern import Pattern
from phd.hf.configuration import PHDLlamaConfig
from phd.hf.padding import UNPADDED, Padding
from phd.hf.rows import Rows, columns_of, least_column, places, rows_for, take


class PHDDynamicLayer(DynamicLayer):
    """Originals grow. The hidden tokens are those of the last n columns, in order: [b, g, n*H, d]."""

    hidden_keys: Tensor | None = None
    hidden_values: Tensor | None = None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

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

    def hidden(self, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the last ``columns`` columns, [b, g, columns*H, d] each."""
        assert self.hidden_keys is not None and self.hidden_values is not None
        rows = columns * self.width
        return self.hidden_keys[:, :, -rows:], self.hidden_values[:, :, -rows:]

    def keep_hidden(self, keys: Tensor, values: Tensor, columns: int, end: int | Tensor) -> None:
        """Keep the last ``columns`` of these. A copy: a view would keep the whole step alive."""
        first = keys.shape[2] - columns * self.width
        self.hidden_keys, self.hidden_values = keys[:, :, first:].clone(), values[:, :, first:].clone()

    def drop_hidden(self, columns: int) -> None:
        """Forget the hidden tokens of the last ``columns`` columns."""
        if self.hidden_keys is not None:
            keep = max(0, self.hidden_keys.shape[2] - columns * self.width)
            self._map_hidden(lambda x: x[:, :, :keep].clone())

    def _map_hidden(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.hidden_keys is not None and self.hidden_values is not None:
            self.hidden_keys, self.hidden_values = function(self.hidden_keys), function(self.hidden_values)


class PHDSparseLayer(PHDDynamicLayer):
    """Originals that a query of the next column still sees, in the order of ``phd.hf.rows``."""

    def __init__(self, pattern: Pattern, width: int) -> None:
        super().__init__(width)
        self.pattern = pattern
        self.record_past = False
        self._forget()

    def _forget(self) -> None:
        self.columns = 0
        """seen so far"""
        self.rows = Rows()
        """as they lie in ``keys`` and ``values``"""
        self.least = 0
        """first column from which on queries find here all they see"""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,
        first: int | None = None,
        padding: Padding = UNPADDED,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Append columns; then let go of what the next does not see.

        Args:
            first: first column of which queries run in this step, that of ``key_states`` or one before.

        Returns:
            keys and values in the rows for ``first``.
        """
        self._keep(self.columns if first is None else first, padding)
        keys, values = super().update(key_states, value_states)
        self.columns += key_states.shape[2]
        if not self.record_past:
            self._keep(self.columns, padding)
        return keys, values

    def _keep(self, column: int, padding: Padding) -> None:
        """Let go of what queries from ``column`` on do not see."""
        wanted = rows_for(self.pattern, column, padding)
        if self.keys is None or self.values is None or wanted == self.rows:
            return
        columns = columns_of(self.pattern, wanted, self.columns, padding, self.keys.device)
        index = places(columns, self.rows, self.columns)
        self.keys, self.values = take(self.keys, index), take(self.values, index)
        self.rows, self.least = wanted, least_column(self.pattern, wanted, padding)

    def activate_past_recording(self) -> None:
        """Keep until the next step what this one no longer needs: it may be rolled back."""
        self.record_past = True

    def get_seq_length(self) -> int:
        return self.columns

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.columns -= abs(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self._forget()


class PHDStaticLayer(StaticLayer):
    """Originals in a buffer of ``max_cache_len`` columns; hidden tokens in a ring of W - 1 columns,
    [b, g, (W-1)*H, d]: column c lies at c mod (W - 1).
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

    def hidden(self, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the last ``columns`` columns before the current length, in order. Not for
        compiled code: reads the length.
        """
        end = int(self.cumulative_length)
        slots = torch.arange(end - columns, end, device=self.hidden_keys.device) % self.ring
        keys, values = (
            x.unflatten(2, (self.ring, self.width)).index_select(2, slots).flatten(2, 3)
            for x in (self.hidden_keys, self.hidden_values)
        )
        return keys, values

    def keep_hidden(self, keys: Tensor, values: Tensor, columns: int, end: int | Tensor) -> None:
        """Put the last ``columns`` of these, which end before column ``end``, into the ring."""
        columns = min(columns, self.ring)
        if not columns:
            return
        slots = (torch.arange(-columns, 0, device=keys.device) + end) % self.ring
        for ring, new in ((self.hidden_keys, keys), (self.hidden_values, values)):
            new = new[:, :, new.shape[2] - columns * self.width :].unflatten(2, (columns, self.width))
            ring.unflatten(2, (self.ring, self.width)).index_copy_(2, slots, new)

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

    Besides keys and values it keeps the token ids: they bring back the hidden tokens after a rollback.

    Args:
        config: of the model.
        max_cache_len: columns to allocate at once, for torch.compile and CUDA graphs; None grows.
        offloading: keep the originals of layers that are not at work in host memory.

    Raises:
        ValueError: ``max_cache_len`` for a model with sparse layers, whose originals have no fixed places.
    """

    def __init__(
        self, config: PHDLlamaConfig, max_cache_len: int | None = None, offloading: bool = False
    ) -> None:
        self.width = config.phd_copies - 1
        ring = config.phd_window - 1 if self.width else 0
        self.phd_layers: list[PHDDynamicLayer] | list[PHDStaticLayer]
        if max_cache_len is None:
            self.phd_layers = [
                PHDDynamicLayer(self.width) if pattern is None else PHDSparseLayer(pattern, self.width)
                for pattern in config.patterns
            ]
        elif any(config.patterns):
            raise ValueError(
                "a static cache: a model with sparse layers takes a growing one alone: leave out "
                "max_cache_len, or cache_implementation"
            )
        else:
            self.phd_layers = [
                PHDStaticLayer(max_cache_len, ring, self.width) for _ in range(config.num_hidden_layers)
            ]
        super().__init__(layers=[*self.phd_layers], offloading=offloading)
        self.input_ids: Tensor | None = None
        """[b, t]; None while there is nothing in the cache, or if some of it came as embeddings."""

    @property
    def is_static(self) -> bool:
        return isinstance(self.phd_layers[0], PHDStaticLayer)

    @property
    def records_past(self) -> bool:
        """Whether sparse layers keep what the next step no longer needs, for a rollback."""
        return any(isinstance(layer, PHDSparseLayer) and layer.record_past for layer in self.phd_layers)

    def hidden_columns(self) -> int:
        """How many of the last columns have their hidden tokens here (growing caches)."""
        keys = self.phd_layers[0].hidden_keys
        return 0 if keys is None else keys.shape[2] // self.width

    def check_reach(self, column: int) -> None:
        """Raise ValueError if sparse layers have let go of what queries of ``column`` see."""
        least = max((x.least for x in self.phd_layers if isinstance(x, PHDSparseLayer)), default=0)
        if column < least:
            raise ValueError(
                f"the cache cannot go back to column {column}: its sparse layers have let go of what is seen "
                f"before column {least}. Run the prompt again with a new cache (only a step of your own, "
                "not those of generate, can be taken back: call activate_past_recording() before it)"
            )

    def nbytes(self) -> int:
        """Bytes of all keys and values, as ``kv_bytes`` tells beforehand."""
        tensors = (
            getattr(layer, name, None)
            for layer in self.layers
            for name in ("keys", "values", "hidden_keys", "hidden_values")
        )
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)

    def ids(self, first: int, end: int) -> Tensor:
        """[b, end - first], of columns in the cache."""
        if self.input_ids is None:
            raise ValueError(
                "the hidden tokens of the cached prompt are gone and cannot be brought back: it was passed "
                "as inputs_embeds, of which the cache keeps no ids. Run the prompt again"
            )
        return self.input_ids[:, first:end]

    def append_ids(self, input_ids: Tensor | None, past: int | Tensor) -> None:
        """Remember the ids of new columns: a rollback into a window needs them. A static cache knows none."""
        if self.is_static:
            return
        if input_ids is None:
            self.input_ids = None
        elif past == 0:
            self.input_ids = input_ids.clone()
        elif self.input_ids is not None:
            self.input_ids = torch.cat([self.input_ids, input_ids], dim=1)

    def hidden(self, layer_idx: int, columns: int, ring: bool) -> tuple[Tensor, Tensor] | None:
        """Hidden keys and values [b, g, columns*H, d] of the last columns; of a whole static ring in its own
        order.
        """
        if not columns:
            return None
        layer = self.phd_layers[layer_idx]
        if ring:
            assert isinstance(layer, PHDStaticLayer)
            return layer.hidden_keys, layer.hidden_values
        return layer.hidden(columns)

    def keep_hidden(
        self, layer_idx: int, keys: Tensor, values: Tensor, columns: int, end: int | Tensor
    ) -> None:
        """Take the last ``columns`` columns of [b, g, n*H, d], which end before column ``end``."""
        self.phd_layers[layer_idx].keep_hidden(keys, values, columns, end)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` columns; the next step brings back the hidden tokens that it
        needs.

        Raises:
            ValueError: sparse layers have let go of what the next step would see.
        """
        if tokens_to_remove < 0:
            self.check_reach(self.get_seq_length() + tokens_to_remove)
        super().crop(tokens_to_remove)
        if removed := abs(tokens_to_remove):
            self._drop_hidden(removed)
            self._map_ids(lambda x: x[:, :-removed])

    def drop_hidden(self) -> None:
        """Keep the originals alone, a vanilla model's cache: what to store of a prompt for later. Those of
        sparse layers may be too few to bring the hidden tokens back: the next step then raises ValueError.
        """
        self._drop_hidden(self.hidden_columns())

    def _drop_hidden(self, columns: int) -> None:
        for layer in self.phd_layers:
            if isinstance(layer, PHDStaticLayer):
                raise ValueError("a static cache cannot be rolled back: leave out max_cache_len")
            layer.drop_hidden(columns)

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


def kv_bytes(
    config: PHDLlamaConfig, length: int, samples: int = 1, *, element_size: int = 2, static: bool = False
) -> int:
    """Bytes of a cache that holds ``length`` positions of each sample, unpadded.

    Originals: ``length`` entries a layer, a vanilla model's; in a sparse layer those that the next position
    sees. Hidden: (K-1) entries for each of the last W-1
    positions (PHD-SWA; none for W = 1), of those in the chunk of the next position (PHD-CSWA). A static cache
    holds room for all W - 1.
    """
    columns = config.phd_window - 1 if static else min(config.phd_window - 1, length)
    if config.phd_chunk is not None and not static:
        columns = min(columns, length % config.phd_chunk)
    entries = config.num_hidden_layers * columns * (config.phd_copies - 1)
    for pattern in config.patterns:
        entries += length if pattern is None else pattern.kept_positions(length) - 1
    assert config.num_key_value_heads is not None and config.head_dim is not None  # set by the config itself
    entry = 2 * config.num_key_value_heads * config.head_dim * element_size
    return samples * entries * entry

"""Sparse layers: which of the originals before it a query keeps. LongGen (arXiv 2410.01485), section 3.

A pattern is static and made of whole blocks, counted from the start of the document, so that a document
packed with others sees what it would see alone. Block j is kept for a query in block i >= j if it is one of
the first ``sink`` blocks, one of the last ``local`` (the query's own included), or, with a ``stride``, one of
the blocks 0, stride, 2 * stride, ... The same for all heads. A block once dropped is never seen again, so a
cache need not hold it.

The paper's text leaves open, and here it is: the query's own block counts among the local ones, and strided
blocks start from block 0 (its kernel library dkernel does both); positions keep their rotary angles; heads do
not differ (dkernel can shift the stride from head to head); block-sparse layers have one local block, which
gives both kinds the same budget of 33 blocks at 131072 tokens.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

KINDS = ("full", "sink", "block-sparse")
PRESETS = {"longgen-sink": "sink", "longgen-block": "block-sparse"}
"""LongGen's hybrids: the top and bottom thirds of the layers are of this kind, those between them full."""


@dataclass(frozen=True)
class Pattern:
    """Which blocks of originals a layer keeps."""

    block: int = 64
    """Positions in a block."""
    sink: int = 1
    """First blocks that are always kept."""
    local: int = 32
    """Most recent blocks that are kept, the query's own included."""
    stride: int | None = None
    """Every so many blocks one is kept, from block 0 on; None for none."""

    def __post_init__(self) -> None:
        for name, least in (("block", 1), ("sink", 0), ("local", 1), ("stride", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"the pattern's {name} must be at least {least}, got {value}")

    def keeps(self, query_position: Tensor, key_position: Tensor) -> Tensor:
        """Whether queries keep keys at or before their own position; both counted from the document's start,
        and broadcast together.
        """
        query_block, key_block = query_position // self.block, key_position // self.block
        kept = (query_block - key_block < self.local) | (key_block < self.sink)
        if self.stride is not None:
            kept = kept | (key_block % self.stride == 0)
        return kept

    def window_start(self, position: int) -> int:
        """First position of the local blocks of ``position``."""
        return max(0, (position // self.block - self.local + 1) * self.block)

    def far_blocks(self, end: int) -> Iterator[int]:
        """The blocks below block ``end`` that are kept beyond the local ones, in order."""
        sink = min(self.sink, end)
        yield from range(sink)
        if self.stride is not None:
            yield from range(-(-sink // self.stride) * self.stride, end, self.stride)

    def kept_positions(self, position: int) -> int:
        """How many positions a query at ``position`` sees, its own included."""
        start = self.window_start(position)
        return position + 1 - start + self.block * len([*self.far_blocks(start // self.block)])


LayerPatterns = tuple[Pattern | None, ...]
"""A pattern for each layer; None where it is full attention."""


def parse_patterns(text: str, num_layers: int, kinds: dict[str, Pattern]) -> LayerPatterns:
    """``10*sink,12*full,10*sink`` or a preset -> the pattern of each layer.

    Args:
        text: a name of ``KINDS`` (for all layers), of ``PRESETS``, or a list of ``count*kind``.
        kinds: what "sink" and "block-sparse" mean.

    Raises:
        ValueError: the text is none of them, or does not add up to ``num_layers``.
    """
    if text in PRESETS:
        outer = num_layers // 3
        if not outer:
            raise ValueError(
                f"{text} has sparse layers around full ones: it needs 3 layers, the model has {num_layers}"
            )
        sparse = PRESETS[text]
        text = f"{outer}*{sparse},{num_layers - 2 * outer}*full,{outer}*{sparse}"
    elif text in KINDS:
        text = f"{num_layers}*{text}"
    layers: list[Pattern | None] = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\d+)\*)?([a-z-]+)", part.strip())
        if match is None or match[2] not in KINDS:
            raise ValueError(
                f"{part.strip()!r} is no attention pattern: write {', '.join((*PRESETS, *KINDS))}, or a list "
                "like 10*sink,12*full,10*sink"
            )
        layers += int(match[1] or 1) * [kinds.get(match[2])]
    if len(layers) != num_layers:
        raise ValueError(f"the attention pattern {text} has {len(layers)} layers, the model {num_layers}")
    return tuple(layers)


def pattern_kinds(block: int, sink: int, local: int, stride: int, stride_local: int) -> dict[str, Pattern]:
    """What "sink" and "block-sparse" mean to ``parse_patterns``: blocks of so many positions; the first and
    the last that a sink layer keeps; the stride and the last ones of a block-sparse layer.
    """
    return {"sink": Pattern(block, sink, local), "block-sparse": Pattern(block, 0, stride_local, stride)}


def describe_patterns(patterns: Sequence[Pattern | None]) -> str:
    """One pattern a group of equal layers: ``10*sink(64: 1+32),12*full,...``"""
    groups: list[tuple[int, Pattern | None]] = []
    for pattern in patterns:
        if groups and groups[-1][1] == pattern:
            groups[-1] = groups[-1][0] + 1, pattern
        else:
            groups.append((1, pattern))
    return ",".join(f"{count}*{_kind(pattern)}" for count, pattern in groups)


def _kind(pattern: Pattern | None) -> str:
    if pattern is None:
        return "full"
    if pattern.stride is None:
        return f"sink({pattern.block}: {pattern.sink}+{pattern.local})"
    return f"block-sparse({pattern.block}: {pattern.stride}+{pattern.local})"

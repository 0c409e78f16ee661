"""Rules of keys: which original tokens at or before its own a query of one layer keeps.

A rule says so twice: as a predicate on pairs of positions, and as *parts*, groups of queries with the keys
that they all see, which kernels compute without a mask. Positions are counted from the start of the document,
so that a document packed with others sees what it would see alone. All copies of a token keep the same
originals.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from inspect import signature
from itertools import groupby, pairwise
from typing import Any, ClassVar


@dataclass(frozen=True)
class Part:
    """``count`` equal blocks of queries, one after another, and the keys that each of them sees."""

    begin: int
    end: int
    """Queries are those at positions ``begin`` to ``end - 1``."""
    keys: tuple[range, ...]
    """Positions of the first block's keys, in order; the next block's begin as many positions later as a
    block has. Several ranges only where there is one block."""
    count: int = 1
    causal: bool = False
    """Keys are the block's own positions, and query i of it sees the first i + 1; otherwise each query sees
    all."""
    heads: slice | None = None
    """The key/value heads that it is for; None for all."""
    rotation: int = 0
    """Added to the queries' positions before the rotary embedding is applied."""

    @property
    def block(self) -> int:
        """Queries in a block."""
        return (self.end - self.begin) // self.count

    @property
    def pairs(self) -> int:
        """How many pairs of a query and a key see each other."""
        if self.causal:
            return self.count * self.block * (self.block + 1) // 2
        return (self.end - self.begin) * sum(map(len, self.keys))


class Keys(ABC):
    """A rule of keys. A subclass is a frozen dataclass: equal rules are equal values."""

    full: ClassVar[bool] = False
    """Whether all keys are kept."""

    @property
    def heads(self) -> int | None:
        """How many key/value heads a layer of this rule has; None for any number."""
        return None

    @property
    def outside_training(self) -> "Keys":
        """The rule in validation and inference."""
        return self

    @property
    def trained_only(self) -> bool:
        """Whether the rule holds in training alone."""
        return self.outside_training != self

    def by_head(self) -> "Iterator[tuple[slice, Keys]]":
        """Slices of the key/value heads, from the first on, and the rule of each, which is one for all of
        its heads."""
        yield slice(None), self

    def of_heads(self, begin: int, end: int) -> "Keys":
        """The rule of a layer that has key/value heads ``begin`` to ``end - 1`` alone."""
        return self

    @abstractmethod
    def keeps(self, query: Any, key: Any, head: Any = 0) -> Any:
        """Whether queries keep keys at or before their own position, in a key/value head."""

    @abstractmethod
    def parts(self, begin: int, end: int) -> Iterator[Part]:
        """What the queries at ``begin`` to ``end - 1`` see. Each pair that ``keeps`` allows lies in one part,
        and each query in one causal part, which comes before its others.
        """

    def rotation(self, query: Any, key: Any) -> Any:
        """What the pair's part adds to the query's position before the rotary embedding is applied."""
        return 0

    def retained(self, length: int) -> list[range]:
        """Of ``length`` positions those that a later query may see, in order: what a cache must hold. A key
        that one query no longer keeps is kept by no later one.
        """
        parts = self.parts(length, length + 1)
        return sorted(
            (keys for part in parts if not part.causal for keys in part.keys), key=lambda r: r.start
        )

    def pairs(self, length: int) -> float:
        """How many pairs of a query and a key of a document of ``length`` positions see each other; the mean
        over heads."""
        return sum(part.pairs for part in self.parts(0, length))

    def held(self, length: int) -> float:
        """How many positions ``retained`` has; the mean over heads."""
        return sum(map(len, self.retained(length)))


@dataclass(frozen=True)
class Full(Keys):
    """All of them: causal attention."""

    full = True

    def keeps(self, query: Any, key: Any, head: Any = 0) -> Any:
        return key <= query

    def parts(self, begin: int, end: int) -> Iterator[Part]:
        yield Part(begin, end, (range(begin, end),), causal=True)
        if begin:
            yield Part(begin, end, (range(begin),))

    def __str__(self) -> str:
        return "full"


@dataclass(frozen=True)
class Blocks(Keys):
    """Whole blocks. LongGen (arXiv 2410.01485), section 3.

    Block j is kept for a query in block i >= j if it is one of the first ``sink`` blocks, one of the last
    ``local`` (the query's own included), or, with a ``stride``, one of the blocks 0, stride, 2 * stride, ...
    A block once dropped is never seen again.

    The paper's text leaves open, and here it is: the query's own block counts among the local ones, and
    strided blocks start from block 0 (its kernel library dkernel does both); positions keep their rotary
    angles; heads do not differ (dkernel can shift the stride from head to head); block-sparse layers have one
    local block, which gives both kinds the same budget of 33 blocks at 131072 tokens.

    Raises:
        ValueError: a number is out of range.
    """

    block: int = 64
    """Positions in a block."""
    sink: int = 1
    """First blocks that are always kept."""
    local: int = 32
    """Most recent blocks that are kept, the query's own included."""
    stride: int | None = None
    """Every ``stride``-th block is kept, from block 0 on; None for none."""

    def __post_init__(self) -> None:
        for name, least in (("block", 1), ("sink", 0), ("local", 1), ("stride", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"the pattern's {name} must be at least {least}, got {value}")

    def keeps(self, query: Any, key: Any, head: Any = 0) -> Any:
        query_block, key_block = query // self.block, key // self.block
        kept = (query_block - key_block < self.local) | (key_block < self.sink)
        if self.stride is not None:
            kept = kept | (key_block % self.stride == 0)
        return kept & (key <= query)

    def window_start(self, position: int) -> int:
        """First position of the local blocks of ``position``."""
        return max(0, (position // self.block - self.local + 1) * self.block)

    def global_blocks(self, end: int) -> Iterator[int]:
        """The blocks below block ``end`` that are kept beyond the local ones, in order."""
        sink = min(self.sink, end)
        yield from range(sink)
        if self.stride is not None:
            yield from range(-(-sink // self.stride) * self.stride, end, self.stride)

    def parts(self, begin: int, end: int) -> Iterator[Part]:
        """The first ``local`` blocks are causal attention. Every later block of queries sees itself causally,
        the ``local - 1`` blocks before it whole, and whole the global blocks that lie before those. The
        global blocks are the same for all queries between two of them: one part does for those.
        """
        block = self.block
        if begin < self.local * block:
            begin_rest = min(end, self.local * block)
            yield from self._near(begin, begin_rest)
        else:
            begin_rest = min(end, -(-begin // block) * block)
            if begin < begin_rest:
                yield from self._near(begin, begin_rest)
        if whole := (end - begin_rest) // block:
            yield from self._near(begin_rest, begin_rest + whole * block, whole)
        if begin_rest + whole * block < end:
            yield from self._near(begin_rest + whole * block, end)

        kept = [*self.global_blocks(self.window_start(end - 1) // block)]
        keys = tuple(range(j * block, (j + 1) * block) for j in kept)
        for count, bounds in enumerate(pairwise([*kept, end]), start=1):
            # the queries whose window lies behind the first of these blocks, but not yet behind the next
            first, last = ((bound + self.local) * block for bound in bounds)
            if max(first, begin) < min(last, end):
                yield Part(max(first, begin), min(last, end), keys[:count])

    def _near(self, first: int, last: int, count: int = 1) -> Iterator[Part]:
        """Queries in ``count`` blocks: each by itself, and the window before it."""
        yield Part(first, last, (range(first, first + (last - first) // count),), count, causal=True)
        if (start := self.window_start(first)) < first:
            yield Part(first, last, (range(start, first),), count)

    def __str__(self) -> str:
        """``sink.BLOCK.SINK.LOCAL``, ``block-sparse.BLOCK.STRIDE.LOCAL``, or where there are both
        ``blocks.BLOCK.SINK.LOCAL.STRIDE``; without numbers where they are the defaults.
        """
        for kind, default in DEFAULTS.items():
            if self == default:
                return kind
        if self.stride is None:
            return f"sink.{self.block}.{self.sink}.{self.local}"
        if not self.sink:
            return f"block-sparse.{self.block}.{self.stride}.{self.local}"
        return f"blocks.{self.block}.{self.sink}.{self.local}.{self.stride}"


@dataclass(frozen=True)
class Groups(Keys):
    """Groups of positions that see themselves alone, in training: LongLoRA's shifted sparse attention (arXiv
    2309.12307, section 3.2). What a shift leaves over at the start of the document is a group of its own; the
    paper's code puts it into one group with the end.

    Raises:
        ValueError: a number is out of range.
    """

    size: int
    """Positions in a group."""
    shift: int = 0
    """Groups begin so many positions earlier; less than ``size``."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.shift < self.size:
            raise ValueError(
                f"groups need a size of at least 1 and a shift below it, got {self.size} and {self.shift}"
            )

    @property
    def outside_training(self) -> Keys:
        return Full()

    def keeps(self, query: Any, key: Any, head: Any = 0) -> Any:
        return ((query + self.shift) // self.size == (key + self.shift) // self.size) & (key <= query)

    def parts(self, begin: int, end: int) -> Iterator[Part]:
        first = begin
        while first < end:
            start = (first + self.shift) // self.size * self.size - self.shift
            stop, count = min(end, start + self.size), 1
            if stop - first == self.size:  # whole groups from here on
                count = (end - first) // self.size
                stop = first + count * self.size
            yield Part(first, stop, (range(first, first + (stop - first) // count),), count, causal=True)
            if max(start, 0) < first:
                yield Part(first, stop, (range(max(start, 0), first),))
            first = stop

    def __str__(self) -> str:
        return f"groups.{self.size}.{self.shift}"


@dataclass(frozen=True)
class ByHead(Keys):
    """Slices of the key/value heads with a rule each; query heads follow their key/value head. DuoAttention
    (arXiv 2410.10819): heads that keep all keys beside heads that keep a sink and a window. LongLoRA: half
    of the heads in groups, half in groups shifted by half of their size.

    Heads are those of the whole layer: a rank that holds some of them takes ``of_heads``.

    Raises:
        ValueError: all heads have one rule, a count is below 1, or a rule is one by head itself.
    """

    slices: tuple[tuple[int, Keys], ...]
    """(how many heads, their rule), from the first head on. Neighbours of one rule become one slice, so that
    equal rules are equal values."""

    def __post_init__(self) -> None:
        if any(count < 1 or isinstance(keys, ByHead) for count, keys in self.slices):
            raise ValueError(f"slices of heads need at least 1 head and a rule of all heads, got {self}")
        same = groupby(self.slices, key=lambda each: each[1])
        object.__setattr__(
            self, "slices", tuple((sum(count for count, _ in run), keys) for keys, run in same)
        )
        if len(self.slices) < 2:
            raise ValueError(f"a rule by head needs heads that differ, got {self}: write that rule alone")

    @classmethod
    def join(cls, slices: Iterable[tuple[int, Keys]]) -> Keys:
        """The rule of these slices of heads: itself where there is one rule for all."""
        given = tuple(slices)
        first = given[0][1]
        return first if all(keys == first for _, keys in given) else cls(given)

    @property
    def heads(self) -> int:
        return sum(count for count, _ in self.slices)

    @property
    def outside_training(self) -> Keys:
        return ByHead.join((count, keys.outside_training) for count, keys in self.slices)

    def by_head(self) -> Iterator[tuple[slice, Keys]]:
        begin = 0
        for count, keys in self.slices:
            yield slice(begin, begin + count), keys
            begin += count

    def of_heads(self, begin: int, end: int) -> Keys:
        return ByHead.join(
            (min(end, heads.stop) - max(begin, heads.start), keys)
            for heads, keys in self.by_head()
            if heads.start < end and begin < heads.stop
        )

    def keeps(self, query: Any, key: Any, head: Any = 0) -> Any:
        kept: Any = False
        for heads, keys in self.by_head():
            kept = kept | ((heads.start <= head) & (head < heads.stop) & keys.keeps(query, key))
        return kept

    def parts(self, begin: int, end: int) -> Iterator[Part]:
        for heads, keys in self.by_head():
            yield from (replace(part, heads=heads) for part in keys.parts(begin, end))

    def retained(self, length: int) -> list[range]:
        """Of all heads together: some head may need them."""
        ranges: list[range] = []
        found = (keys for _, rule in self.slices for keys in rule.retained(length) if keys)
        for keys in sorted(found, key=lambda r: r.start):
            if ranges and keys.start <= ranges[-1].stop:
                ranges[-1] = range(ranges[-1].start, max(ranges[-1].stop, keys.stop))
            else:
                ranges.append(keys)
        return ranges

    def pairs(self, length: int) -> float:
        return sum(count * keys.pairs(length) for count, keys in self.slices) / self.heads

    def held(self, length: int) -> float:
        return sum(count * keys.held(length) for count, keys in self.slices) / self.heads

    def __str__(self) -> str:
        """``heads.2full.6sink.64.1.4``: counts with their rules."""
        return ".".join(["heads", *(f"{count}{keys}" for count, keys in self.slices)])


def shifted_groups(heads: int, size: int) -> Keys:
    """LongLoRA's attention in training: half of the key/value heads in groups of ``size`` positions, the
    other half in groups that begin half a group earlier.

    Raises:
        ValueError: there is no such half.
    """
    if heads % 2 or size % 2:
        raise ValueError(f"shifted groups need an even number of heads and positions, got {heads} and {size}")
    return ByHead(((heads // 2, Groups(size)), (heads // 2, Groups(size, size // 2))))


DEFAULTS = {"full": Full(), "sink": Blocks(), "block-sparse": Blocks(64, 0, 1, 64)}
"""What a kind means without numbers."""

KINDS: dict[str, Callable[..., Keys]] = {
    "full": lambda: Full(),
    "sink": lambda block, sink, local: Blocks(block, sink, local),
    "block-sparse": lambda block, stride, local: Blocks(block, 0, local, stride),
    "blocks": lambda block, sink, local, stride: Blocks(block, sink, local, stride),
    "groups": lambda size, shift: Groups(size, shift),
}
"""How a kind is made from its numbers, in the order in which its name has them."""

SPELLINGS = (
    "full, sink[.BLOCK.SINK.LOCAL], block-sparse[.BLOCK.STRIDE.LOCAL], blocks.BLOCK.SINK.LOCAL.STRIDE, (in "
    "training alone) groups.SIZE.SHIFT, or by key/value heads heads.2full.6sink.64.1.4"
)

_KIND = "|".join(KINDS)
_NUMBERS = r"(?:\.\d+(?![a-z\d]))*"  # a number before a letter counts the heads of the next slice
_SLICE = rf"\.(\d+)((?:{_KIND}){_NUMBERS})"
TEXT = rf"(?:{_KIND})[.\d]*|heads(?:\.\d+(?:{_KIND}){_NUMBERS})+"
"""What the text of a rule of keys looks like, as a regular expression."""


def parse_keys(text: str) -> Keys:
    """Inverse of ``str`` for every rule of keys.

    Raises:
        ValueError: it is none, or a number is out of range.
    """
    if re.fullmatch(rf"heads(?:{_SLICE})+", text):
        slices = re.findall(_SLICE, text)
        return ByHead(tuple((int(count), parse_keys(keys)) for count, keys in slices))
    kind, *numbers = text.split(".")
    if not numbers and kind in DEFAULTS:
        return DEFAULTS[kind]
    try:
        bound = signature(KINDS[kind]).bind(*map(int, numbers))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{text!r} is no rule of keys: write {SPELLINGS}") from None
    return KINDS[kind](*bound.args)

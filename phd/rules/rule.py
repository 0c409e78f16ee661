"""Who sees whom: the one rule that every kernel, layout and cache of this project is tested against."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from phd.rules.copies import Copies
from phd.rules.keys import Full, Keys


@dataclass(frozen=True)
class AttentionRule:
    """The attention of one layer: of K copies of every token, on the keys that the layer keeps.

    Raises:
        ValueError: naive repetition on a sparse layer.
    """

    copies: Copies = Copies()
    keys: Keys = Full()

    def __post_init__(self) -> None:
        if self.copies.cached and self.sparse:
            raise ValueError(
                "naive repetition has full layers alone: leave out the pattern or the repetition"
            )

    @property
    def sparse(self) -> bool:
        """Whether the layer does not keep all keys."""
        return not self.keys.full

    @property
    def outside_training(self) -> "AttentionRule":
        """The layer's rule in validation and inference."""
        return replace(self, keys=self.keys.outside_training)

    def of_heads(self, begin: int, end: int) -> "AttentionRule":
        """The rule of key/value heads ``begin`` to ``end - 1`` alone."""
        return replace(self, keys=self.keys.of_heads(begin, end))

    def sees(
        self, query: Any, query_copy: Any, key: Any, key_copy: Any, *, document_start: Any = 0, head: Any = 0
    ) -> Any:
        """Whether a query sees a key.

        A copy sees the originals up to its own position that the layer keeps for it, and the copies of its
        own token up to itself (eq. 2 of the paper). A hidden copy also sees all hidden copies of the
        positions from its band's start to its own. With cached copies attention is causal over all of them
        instead.

        Args:
            query, key: positions.
            query_copy, key_copy: numbers of the copies.
            document_start: position at which the query's document starts; nothing before it is seen.
            head: key/value head.
        """
        own_token = (key == query) & (key_copy <= query_copy)
        if self.copies.cached:
            return own_token | ((key < query) & (key >= document_start))
        original = (key_copy == 0) & (key <= query) & (key >= document_start)
        original = original & self.keys.keeps(query - document_start, key - document_start, head)
        hidden = (key_copy >= 1) & (query_copy >= 1) & (key < query)
        hidden = hidden & (key >= self.copies.band_start(query, document_start))
        return original | ((key_copy >= 1) & own_token) | hidden

    @lru_cache  # noqa: B019 (a rule is a small value)
    def visible_pairs(self, length: int, *, last_copy_only: bool = False) -> float:
        """How many pairs of a query and a key of one head see each other in a document of ``length``
        positions: ``sees`` summed over K * length queries, or those of the last copy, and K * length keys.
        The mean over heads.

        Raises:
            ValueError: there is no position.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        copies = self.copies
        queries = 1 if last_copy_only else copies.count
        if copies.cached:
            own = copies.count if last_copy_only else copies.count * (copies.count + 1) // 2
            return queries * copies.count * length * (length - 1) // 2 + length * own
        # at its own position copy j sees the hidden copies 1..j
        own = copies.hidden if last_copy_only else copies.count * copies.hidden // 2
        hidden_pairs = min(queries, copies.hidden) * copies.hidden * self._earlier_in_band(length)
        return queries * self.keys.pairs(length) + hidden_pairs + own * length

    def retained(self, length: int) -> float:
        """Keys that a cache must hold after ``length`` positions, in one head: originals that a later query
        may see, and the hidden copies that the next position sees. The mean over heads.
        """
        copies = self.copies
        if copies.cached:
            return copies.count * length
        hidden = copies.hidden * (length - copies.band_start(length)) if copies.hidden else 0
        return self.keys.held(length) + hidden

    def _earlier_in_band(self, length: int) -> int:
        """Pairs of a position and an earlier one of its band."""
        window = self.copies.window

        def pairs(chunk: int) -> int:
            growing = min(chunk, window)
            return growing * (growing - 1) // 2 + (chunk - growing) * (window - 1)

        chunks, rest = divmod(length, self.copies.chunk or length)
        return chunks * pairs(self.copies.chunk or length) + pairs(rest)

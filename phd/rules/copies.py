"""Copies of a token: how many, and which hidden copies see each other. PHD-Transformer (arXiv 2504.14992),
section 3.

A *position* is a token of the sequence; each is repeated into K *copies*, counted from 0. Copy 0 is the
original token, copies 1..K-1 are its hidden decoding tokens.
"""

import re
from dataclasses import dataclass
from typing import Any

_NAMES = {
    "naive": re.compile(r"naive-(?P<count>\d+)"),
    "consecutive": re.compile(r"naive-(?P<count>\d+)-consecutive"),
    "PHD": re.compile(r"PHD-(?P<count>\d+)"),
    "SWA": re.compile(r"PHD-SWA-(?P<count>\d+)-(?P<window>\d+)-inf"),
    "CSWA": re.compile(r"PHD-CSWA-(?P<count>\d+)-(?P<window>\d+)-(?P<chunk>\d+)"),
}
SPELLINGS = "vanilla, naive-K, naive-K-consecutive, PHD-K, PHD-SWA-K-W-inf or PHD-CSWA-K-W-C"


@dataclass(frozen=True)
class Copies:
    """K copies of every token. Fields without effect hold one value, so that equal rules are equal values.

    Raises:
        ValueError: a number is below 1, copies are cached and there is one, or consecutive and not cached.
    """

    count: int = 1
    """K. 1 is the vanilla model."""
    window: int = 1
    """W: a hidden copy sees the hidden copies of the W most recent positions, its own included (PHD-SWA).
    1 is plain PHD."""
    chunk: int | None = None
    """C: hidden copies see each other only inside chunks of C positions, counted from the start of the
    document (PHD-CSWA); None for no chunks."""
    cached: bool = False
    """Naive repetition, the baseline of the paper's Figure 1: causal attention over the K*s tokens,
    position by position, every one of them cached."""
    consecutive: bool = False
    """Rotary position K * position + copy in place of the position: cached copies only, as in the plain form
    of Hidden Decoding (arXiv 2607.08186)."""

    def __post_init__(self) -> None:
        for name, value in (("copies", self.count), ("window", self.window), ("chunk", self.chunk)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.cached and self.count == 1:
            raise ValueError("naive repetition needs at least 2 copies")
        if self.consecutive and not self.cached:
            raise ValueError("consecutive positions are of naive repetition alone")
        window, chunk = self.window, self.chunk
        if self.count == 1 or self.cached:
            window = 1
        if chunk is not None:
            window = min(window, chunk)
        object.__setattr__(self, "window", window)
        object.__setattr__(self, "chunk", None if window == 1 else chunk)

    @property
    def hidden(self) -> int:
        """K - 1."""
        return self.count - 1

    def band_start(self, position: Any, document_start: Any = 0) -> Any:
        """First position whose hidden copies a hidden copy at ``position`` sees: of its window, of its chunk
        and of its document.
        """
        start = _larger(position - self.window + 1, document_start)
        if self.chunk is not None:
            start = _larger(start, position - (position - document_start) % self.chunk)
        return start

    def __str__(self) -> str:
        """The paper's name, model-type-K-W-C: ``PHD-CSWA-2-16-32``, ``PHD-SWA-5-16-inf``, ``PHD-2``."""
        if self.count == 1:
            return "vanilla"
        if self.cached:
            return f"naive-{self.count}" + ("-consecutive" if self.consecutive else "")
        if self.window == 1:
            return f"PHD-{self.count}"
        if self.chunk is None:
            return f"PHD-SWA-{self.count}-{self.window}-inf"
        return f"PHD-CSWA-{self.count}-{self.window}-{self.chunk}"

    @classmethod
    def parse(cls, name: str) -> "Copies":
        """Inverse of ``str``.

        Raises:
            ValueError: it is no such name.
        """
        if name == "vanilla":
            return cls()
        for kind, spelling in _NAMES.items():
            if match := spelling.fullmatch(name):
                numbers: dict[str, Any] = {field: int(text) for field, text in match.groupdict().items()}
                consecutive = kind == "consecutive"
                return cls(**numbers, cached=consecutive or kind == "naive", consecutive=consecutive)
        raise ValueError(f"{name!r} names no copies: write {SPELLINGS}")


def _larger(a: Any, b: Any) -> Any:
    """The larger of two integers, or of two integer tensors in each place."""
    return a + (b - a) * (b > a)

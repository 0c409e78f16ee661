"""Tasks of which theory says what parallel width and serial depth do, with a label at every position.

Legend: b samples, n positions with a label.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class Task:
    """Tokens and their labels; a label depends on no later token."""

    name: str
    length: int
    """n"""
    symbols: int
    """Tokens and labels are ids below it."""
    make: Callable[[int, Generator], tuple[Tensor, Tensor]]

    @property
    def vocabulary(self) -> int:
        """The symbols, and the token that begins a sample."""
        return self.symbols + 1

    def batch(self, samples: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Tokens [b, 1 + n], the first of which begins the sample, and labels [b, n], int64. ``seed`` is
        below 2**12, ``step`` below 2**20.

        Without a first token, attention over a symbol and over two that are equal would be the same, but for
        copies, which see their own token more often: they would gain where vanilla cannot.
        """
        assert 0 <= seed < 1 << 12 and 0 <= step < 1 << 20  # of a generator's seed torch takes 32 bits
        tokens, labels = self.make(samples, Generator().manual_seed(seed << 20 | step))
        return F.pad(tokens, (1, 0), value=self.symbols), labels


def windowed_parity(length: int, window: int) -> Task:
    """Bits; the label is the parity of the last ``window`` of them, the current one included, or of as many
    as there are. (Parity of n bits with n pauses: arXiv 2505.21024. The window makes a step with a label of
    every position.)
    """

    def make(samples: int, generator: Generator) -> tuple[Tensor, Tensor]:
        bits = torch.randint(2, (samples, length), generator=generator)
        sums = bits.cumsum(1)
        sums[:, window:] -= sums[:, :-window].clone()
        return bits, sums % 2

    return Task(name=f"parity-{window}", length=length, symbols=2, make=make)


def prefix_match3(length: int, modulus: int) -> Task:
    """Numbers mod ``modulus``; the label is 1 where two different earlier positions have numbers that add up
    to 0 with the current one (Match3 of arXiv 2306.02896, 3SUM of 2404.15758, on prefixes).

    Each label from the third position on is drawn first, 0 and 1 equally likely, then the number, evenly from
    those that give it; where none does the label is the other one. The first two positions have label 0.
    """

    def make(samples: int, generator: Generator) -> tuple[Tensor, Tensor]:
        numbers = torch.zeros(samples, length, dtype=torch.int64)
        labels = torch.zeros_like(numbers)
        matches = torch.zeros(samples, modulus, dtype=torch.bool)  # the numbers that would have label 1
        for position in range(length):
            wanted = torch.randint(2, (samples, 1), generator=generator).bool()
            # between 0 and 1, and above 1 for those that give the label
            preference = torch.rand(samples, modulus, generator=generator) + 2 * (matches == wanted)
            number = preference.argmax(1, keepdim=True)
            labels[:, position : position + 1] = matches.gather(1, number)
            matches.scatter_(1, -(number + numbers[:, :position]) % modulus, True)
            numbers[:, position : position + 1] = number
        return numbers, labels

    return Task(name=f"match3-{modulus}", length=length, symbols=modulus, make=make)


def p_hop(length: int, hops: int, letters: int) -> Task:
    """Letters; from each position one hops ``hops`` times to the one that followed the last earlier
    occurrence of the letter one stands on, and the label is the letter there (hop_p of arXiv 2402.09268).
    Where there is no such occurrence the label is ``letters``, which is no letter.
    """

    def make(samples: int, generator: Generator) -> tuple[Tensor, Tensor]:
        text = torch.randint(letters, (samples, length), generator=generator)
        places = torch.arange(length)
        # [b, i, j]: the letter at i is the one before j, and j is not after i
        follows = (text[:, :, None] == text.roll(1, 1)[:, None]) & (places <= places[:, None]) & (places > 0)
        hop = torch.where(follows, places, 0).amax(2)  # 0: nowhere, and so is the hop from there
        at = places.expand(samples, -1)
        for _ in range(hops):
            at = hop.gather(1, at)
        return text, torch.where(at > 0, text.gather(1, at), letters)

    return Task(name=f"hop-{hops}", length=length, symbols=letters + 1, make=make)


def guess(labels: Tensor) -> float:
    """Accuracy on ``labels`` [b, n] of the best answer that looks at no token: each position's commonest."""
    counts = torch.stack([(labels == label).sum(0) for label in labels.unique()])
    return (counts.amax(0).sum() / labels.numel()).item()

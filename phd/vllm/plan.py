"""Which hidden copies a step of vLLM runs, and which hidden keys they see. Torch alone.

vLLM hands the model T tokens, the new positions [a, b) of each request of a batch. The hidden copies of R
*columns* run with them: of positions ``first`` to b - 1 of each request, where ``first`` is the start of the
chunk of b - 1, or a if that is later; with W = 1 it is b - 1 alone. That is enough: later positions see no
other hidden key, and only the last position's state is asked for.

After a step the ring of a request holds the hidden keys of the last W - 1 positions of the chunk of b - 1,
that of position p in slot p % ring. So a step may begin anywhere, except in the middle of a chunk of which no
step of the request has run: a prefix hit must end where a chunk ends.

Legend: n requests, T tokens, R columns, W window, K copies, J = K - 1 hidden copies.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from phd.rules.copies import Copies


@dataclass
class Plan:
    """Of one step. Tensors are on the host until ``to``."""

    tokens: Tensor
    """[R], of each column the row of its token, of T"""
    positions: Tensor
    """[R], in its request"""
    requests: Tensor
    """[R], of n"""
    counts: list[int]
    """[n], columns of each request; 0 for one without new tokens"""
    ends: list[int]
    """[n], b of each request"""
    steps: Tensor
    """[R, W], which column of this step lies 0..W-1 positions before each; its own where there is none"""
    seen: Tensor
    """[R, W], whether the hidden keys of that many positions before are seen"""
    ringed: Tensor
    """[R, W], whether those are in the ring"""
    kept: Tensor
    """[R], whether the ring must hold the hidden keys of a column after the step"""

    def to(self, device: torch.device) -> "Plan":
        """The same with its tensors there."""
        moved = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Plan(**moved, counts=self.counts, ends=self.ends)

    @cached_property
    def starts(self) -> list[int]:
        """[n + 1], the first column of each request, and R."""
        total, starts = 0, [0]
        for count in self.counts:
            total += count
            starts.append(total)
        return starts

    def keys(self, ring: int) -> Tensor:
        """[R, W], rows among the rings of all requests, n * ring, and then this step's columns: the hidden
        keys 0..W-1 positions before each column. Those that are not seen are its own, which are finite.
        """
        back = torch.arange(self.seen.shape[1], device=self.seen.device)
        wanted = self.positions[:, None] - back
        rings = len(self.counts) * ring
        if not ring:
            return self.steps
        return torch.where(self.ringed, self.requests[:, None] * ring + wanted % ring, rings + self.steps)

    def visible(self, hidden: int) -> Tensor:
        """[R, J, W, J], whether copy 1 + j of a column sees copy 1 + i of those before."""
        copy = torch.arange(hidden, device=self.seen.device)
        own = copy[:, None] >= copy  # [J, J]
        back = torch.arange(self.seen.shape[1], device=self.seen.device)
        order = (back[:, None, None] > 0) | own  # [W, J, J]
        return self.seen[:, None, :, None] & order.transpose(0, 1)

    def writes(self, ring: int) -> tuple[Tensor, Tensor]:
        """The columns that go into their request's ring, and their slots."""
        columns = self.kept.nonzero().squeeze(1)
        return columns, self.positions[columns] % ring


def make_plan(starts: Tensor, ends: Tensor, copies: Copies, *, all_columns: bool = False) -> Plan:
    """The plan of a step.

    Args:
        starts: [n + 1], first token of each request among T, and T. On the host, as ``ends``.
        ends: [n], positions of each request after the step.
        copies: K > 1; chunks if W > 1.
        all_columns: run the hidden copies of every token, for log-probabilities of the prompt.
    """
    starts, ends = starts.long(), ends.long()
    lengths = starts.diff()
    begins = ends - lengths
    last = ends - 1
    if all_columns:
        first = begins
    elif copies.window == 1:
        first = torch.maximum(begins, last)
    else:
        assert copies.chunk is not None
        first = torch.maximum(begins, last - last % copies.chunk)
    counts = torch.where(lengths > 0, ends - first, 0)
    requests = torch.arange(len(ends)).repeat_interleave(counts)
    column = torch.arange(len(requests))
    base = counts.cumsum(0) - counts  # first column of each request
    positions = (first - base)[requests] + column
    back = torch.arange(copies.window)
    wanted = positions[:, None] - back
    seen = wanted >= copies.band_start(positions)[:, None]
    ringed = seen & (wanted < first[requests][:, None])
    steps = torch.where(seen & ~ringed, column[:, None] - back, column[:, None])
    kept = positions >= (ends - (copies.window - 1))[requests]
    tokens = (starts[:-1] - begins)[requests] + positions
    return Plan(tokens, positions, requests, counts.tolist(), ends.tolist(), steps, seen, ringed, kept)


def dummy_plan(tokens: int, requests: int, copies: Copies) -> Plan:
    """Of a step without requests, by which vLLM measures memory: as many columns as ``requests`` can need."""
    count = min(tokens, requests * (copies.chunk or 1))
    starts = torch.tensor([tokens - count, tokens])
    return make_plan(starts, torch.tensor([count]), copies, all_columns=True)

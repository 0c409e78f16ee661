"""Context parallelism: what the ranks of a group, each with two slices of the sequence, send to each other.

- p2p (ring): the original keys and values go around, overlapped with the computation.
- all_gather: every rank collects the original keys and values of all.
- a2a: queries, keys, values and outputs of *all* copies change from slices of positions to slices of heads
  and back; K times the traffic that the originals alone would need.
With p2p and all_gather the hidden copies stay where they are, but for the window - 1 positions before a
slice; and sparse layers exchange kept keys alone, by one all-to-all.

Legend: s_l rows on this rank, P ranks, b samples, K copies, h heads, g key/value heads, d head dimension.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from phd.attention.slices import rank_segments

COMM_TYPES = ("p2p", "all_gather", "a2a")


@dataclass(frozen=True, eq=False)
class Exchange:
    """The keys that this rank sends to the others of its group and receives from them."""

    send: Tensor
    """Rows of this rank to send, those for rank 0 first."""
    sent: list[int]
    """Number of rows sent to each rank."""
    received: list[int]
    """Number of rows received from each rank."""
    order: Tensor
    """[t], in the order of positions: the index of each kept key in (own rows, received rows)."""


@dataclass(frozen=True)
class ContextParallel:
    """A context-parallel group and how it communicates (one of COMM_TYPES; Megatron's --cp-comm-type)."""

    group: dist.ProcessGroup
    comm_type: str = "p2p"

    def __post_init__(self) -> None:
        if self.comm_type not in COMM_TYPES:
            raise ValueError(f"comm_type must be one of {', '.join(COMM_TYPES)}, got {self.comm_type!r}")

    @property
    def rank(self) -> int:
        return self.group.rank()

    @property
    def size(self) -> int:
        return self.group.size()

    def share_of(self, heads: int) -> int:
        """Key/value heads of each rank where ranks share heads.

        Raises:
            ValueError: it is no whole number.
        """
        if heads % self.size:
            raise ValueError(
                f"comm_type 'a2a' gives each rank as many key/value heads: {heads} heads on {self.size} "
                "ranks do not divide; use 'p2p' or 'all_gather'"
            )
        return heads // self.size

    def blocks_of_others(self, block: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The other ranks' ``block``s with their ranks. Communication starts at the call."""
        if self.comm_type == "p2p":
            return self._around(block, self._shift(block))
        blocks = block.new_empty((self.size, *block.shape))
        dist.all_gather_into_tensor(blocks.flatten(0, 1), block, group=self.group)
        return ((rank, blocks[rank]) for rank in range(self.size) if rank != self.rank)

    def sum_from_others(self, block: Tensor, share: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Sum over all other ranks of what their ``share(this rank, this rank's block)`` returns.

        Args:
            block: this rank's, of one shape on all.
            share: called once for each other rank with its number and its block; returns a tensor of the
                block's shape.
        """
        if self.comm_type == "p2p":
            travelling: _Shift | None = None
            for rank, other in self.blocks_of_others(block):
                part = share(rank, other)
                if travelling is not None:
                    part = part + travelling.wait()
                travelling = self._shift(part)
            assert travelling is not None
            return travelling.wait()
        parts = block.new_zeros((self.size, *block.shape))
        for rank, other in self.blocks_of_others(block):
            parts[rank] = share(rank, other)
        total = torch.empty_like(block)
        dist.reduce_scatter_tensor(total, parts.flatten(0, 1), group=self.group)
        return total

    def fetch(self, rows: Tensor, exchange: Exchange) -> Tensor:
        """Own rows and those of other ranks, as ``exchange`` tells: [n, s_l, ...] -> [n, t, ...]."""
        # rows first: what goes to one rank lies together
        own = rows.movedim(1, 0)
        fetched = own.new_empty((sum(exchange.received), *own.shape[1:]))
        dist.all_to_all_single(
            fetched, own[exchange.send], exchange.received, exchange.sent, group=self.group
        )
        return torch.cat([own, fetched])[exchange.order].movedim(0, 1).contiguous()

    def give_back(self, grads: Tensor, exchange: Exchange, rows: int) -> Tensor:
        """Transpose of ``fetch``, with ``rows`` s_l: gradients are sent to the ranks that own the rows, and
        added there.
        """
        travelling = grads.movedim(1, 0).contiguous()
        ordered = torch.empty_like(travelling)
        ordered[exchange.order] = travelling
        own = ordered[:rows]
        received = own.new_empty((sum(exchange.sent), *own.shape[1:]))
        dist.all_to_all_single(received, ordered[rows:], exchange.sent, exchange.received, group=self.group)
        return own.index_add_(0, exchange.send, received).movedim(0, 1)

    def halos(self, tails: Tensor) -> Tensor:
        """The tail of the slice before each of this rank's two slices.

        Args:
            tails: [2, ...], of this rank's first and second slice.

        Returns:
            [2, ...]; zeros before the sequence's first slice.
        """
        received = torch.zeros_like(tails)
        rank, last = self.rank, self.size - 1
        messages = []
        if rank > 0:
            messages += [(dist.irecv, received[0], rank - 1), (dist.isend, tails[1], rank - 1)]
        if rank < last:
            messages += [(dist.isend, tails[0], rank + 1), (dist.irecv, received[1], rank + 1)]
        else:
            received[1] = tails[0]
        self._exchange(messages)
        return received

    def tails(self, halos: Tensor) -> Tensor:
        """Backward of ``halos``: the gradients of the halos, sent back to the ranks whose tails they are."""
        received = torch.zeros_like(halos)
        rank, last = self.rank, self.size - 1
        messages = []
        if rank > 0:
            messages += [(dist.isend, halos[0], rank - 1), (dist.irecv, received[1], rank - 1)]
        if rank < last:
            messages += [(dist.irecv, received[0], rank + 1), (dist.isend, halos[1], rank + 1)]
        else:
            received[0] = halos[1]
        self._exchange(messages)
        return received

    def _around(self, block: Tensor, shift: "_Shift") -> Iterator[tuple[int, Tensor]]:
        for step in range(1, self.size):
            block = shift.wait()
            if step < self.size - 1:
                shift = self._shift(block)
            yield (self.rank - step) % self.size, block

    def _shift(self, block: Tensor) -> "_Shift":
        """Send ``block`` to the next rank of the ring and receive the previous one's."""
        incoming = torch.empty_like(block)
        to, source = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        return _Shift(incoming, self._post([(dist.isend, block, to), (dist.irecv, incoming, source)]))

    def _exchange(self, messages: list[tuple[Callable, Tensor, int]]) -> None:
        if messages:
            for request in self._post(messages):
                request.wait()

    def _post(self, messages: list[tuple[Callable, Tensor, int]]) -> list[dist.Work]:
        return dist.batch_isend_irecv(
            [
                dist.P2POp(function, tensor, group=self.group, group_peer=peer)
                for function, tensor, peer in messages
            ]
        )


@dataclass(frozen=True)
class _Shift:
    incoming: Tensor
    requests: list[dist.Work]

    def wait(self) -> Tensor:
        for request in self.requests:
            request.wait()
        return self.incoming


def positions_to_heads(rows: Tensor, parallel: ContextParallel) -> Tensor:
    """[s_l, n, h, d] -> [P*s_l, n, h/P, d]: all positions in order, this rank's heads. Differentiable."""
    return _PositionsToHeads.apply(rows, parallel)


def heads_to_positions(rows: Tensor, parallel: ContextParallel) -> Tensor:
    """Inverse of ``positions_to_heads``."""
    return _HeadsToPositions.apply(rows, parallel)


class _PositionsToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, parallel: ContextParallel) -> Tensor:
        ctx.parallel = parallel
        return _gather_positions(rows, parallel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather_heads(grad, ctx.parallel), None


class _HeadsToPositions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, parallel: ContextParallel) -> Tensor:
        ctx.parallel = parallel
        return _gather_heads(rows, parallel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather_positions(grad, ctx.parallel), None


def _gather_positions(rows: Tensor, parallel: ContextParallel) -> Tensor:
    size = parallel.size
    # [s_l, n, P, h/P, d] -> [P, s_l, n, h/P, d], first axis: the rank that the heads go to
    send = rows.unflatten(2, (size, -1)).movedim(2, 0).contiguous()
    received = torch.empty_like(send)
    dist.all_to_all_single(received, send, group=parallel.group)
    ordered = torch.empty_like(received).flatten(0, 1)
    for rank in range(size):
        for segment in rank_segments(ordered.shape[0], rank, size):
            ordered[segment.begin : segment.begin + segment.length] = received[rank, segment.rows]
    return ordered


def _gather_heads(rows: Tensor, parallel: ContextParallel) -> Tensor:
    size = parallel.size
    send = rows.new_empty((size, rows.shape[0] // size, *rows.shape[1:]))
    for rank in range(size):
        for segment in rank_segments(rows.shape[0], rank, size):
            send[rank, segment.rows] = rows[segment.begin : segment.begin + segment.length]
    received = torch.empty_like(send)
    dist.all_to_all_single(received, send, group=parallel.group)
    # [P, s_l, n, h/P, d] -> [s_l, n, h, d]
    return received.movedim(0, 2).flatten(2, 3)

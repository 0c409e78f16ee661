"""How K copies of a query reach one kernel over the originals' keys: what each way of laying them out costs.

``expanded`` copies keys and values for every copy and the query not at all (what phd/attention/full.py does);
``regrouped`` copies the query, once, so that all copies of a group's heads stand beside each other, and reads
keys and values where they lie; ``copy by copy`` copies neither and calls the kernel K times. Forward and
backward in bf16, outputs and gradients as [s, K, ...], as Megatron wants them.

Legend: s positions, K copies, h query heads, g key/value heads, r = h/g, d head dimension.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.piece import Result, keep, main, say, time_left
from benchmarks.gpu.timing import device_of, peak_bytes
from benchmarks.timing import in_turns
from phd.attention.full import FullOriginals
from phd.attention.kernels import attention_backward, attention_forward
from phd.attention.layout import Layout
from phd.rules.rule import AttentionRule

LEAST_SECONDS = 6.0
"""Of a size: cuDNN plans each of the three ways, forward and backward."""

type Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Query [s, K, h, d], key and value [s, g, d], and the gradient of the output, as the query."""
type Outcome = tuple[Tensor, Tensor, Tensor, Tensor]
"""Output and gradient of the query [s, K, h, d], of key and value [s, g, d]."""


def run(dry: bool) -> Result:
    """How K copies of a query reach one kernel over the originals' keys: what each way costs."""
    device = device_of(dry)
    sizes = [(64, 2, 8, 2, 64)] if dry else [
        (s, copies, 2048 // d, groups, d)
        for s in (16384, 4096) for d in (128, 64) for groups in (2048 // d // 4, 2048 // d)
        for copies in (2, 3)
    ]  # fmt: skip
    rows: list[Result] = []
    for length, copies, heads, groups, dim in sizes:
        row: Result = {"s": length, "K": copies, "h": heads, "g": groups, "d": dim}
        if time_left() < LEAST_SECONDS:
            rows.append(row | {"skipped": "no time left"})
            continue
        say(f"s={length} K={copies} g={groups} d={dim}")
        inputs = random_inputs(length, copies, heads, groups, dim, device)
        calls = {name: partial(way, *inputs) for name, way in WAYS.items()}
        row["peak_bytes"] = {name: peak_bytes(call, device) for name, call in calls.items()}
        row["ms"] = {
            name: statistics.median(times) * 1e3
            for name, times in in_turns(calls, 2 if dry else 7, device).items()
        }
        row["fastest"] = min(row["ms"], key=row["ms"].__getitem__)
        rows.append(row)
        keep(sizes=rows)
    return {"sizes": rows}


def random_inputs(
    length: int, copies: int, heads: int, groups: int, dim: int, device: torch.device
) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(length, *shape, dim, generator=generator, device=device).to(torch.bfloat16)

    return draw(copies, heads), draw(groups), draw(groups), draw(copies, heads)


def expanded(query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> Outcome:
    layout = Layout.of(AttentionRule(), len(query), device=query.device)
    scale = query.shape[-1] ** -0.5
    # one sample: [s, ...] -> [s, 1, ...]
    query, key, value, grad = (x.unsqueeze(1) for x in (query, key, value, grad))
    originals = FullOriginals(query, key, value, layout, scale)
    out, lse = originals.forward()
    grad_query, parts = originals.backward(grad, out, lse)
    # one of each copy
    grad_key, grad_value = (part.squeeze(1).unflatten(1, (-1, key.shape[2])).sum(1) for part in parts)
    return out.squeeze(1), grad_query.squeeze(1), grad_key, grad_value


def regrouped(query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> Outcome:
    copies, groups = query.shape[1], key.shape[1]

    def fold(rows: Tensor) -> Tensor:
        """[s, K, h, d] -> [1, g*K*r, s, d]."""
        return rows.unflatten(2, (groups, -1)).permute(2, 1, 3, 0, 4).flatten(0, 2).unsqueeze(0)

    def unfold(heads: Tensor) -> Tensor:
        return heads.unflatten(1, (groups, copies, -1))[0].permute(3, 1, 0, 2, 4).flatten(2, 3)

    out, grads = both_ways(fold(query), whole(key), whole(value), fold(grad))
    return unfold(out), unfold(grads[0]), unwhole(grads[1]), unwhole(grads[2])


def copy_by_copy(query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> Outcome:
    out, grad_query = torch.empty_like(query), torch.empty_like(query)
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    for copy in range(query.shape[1]):
        one, grads = both_ways(whole(query[:, copy]), whole(key), whole(value), whole(grad[:, copy]))
        out[:, copy], grad_query[:, copy] = unwhole(one), unwhole(grads[0])
        grad_key += unwhole(grads[1])
        grad_value += unwhole(grads[2])
    return out, grad_query, grad_key, grad_value


WAYS: dict[str, Callable[..., Outcome]] = {
    "expanded": expanded,
    "regrouped": regrouped,
    "copy by copy": copy_by_copy,
}


def both_ways(query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output, and gradients of query, key and value; all [1, heads, s, d]."""
    scale = query.shape[-1] ** -0.5
    out, lse = attention_forward(query, key, value, scale)
    return out, attention_backward(grad, query, key, value, out, lse, scale)


def whole(rows: Tensor) -> Tensor:
    """[s, n, d] -> [1, n, s, d], the same memory."""
    return rows.transpose(0, 1).unsqueeze(0)


def unwhole(heads: Tensor) -> Tensor:
    return heads.squeeze(0).transpose(0, 1)


if __name__ == "__main__":
    raise SystemExit(main(run))

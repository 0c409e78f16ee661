"""One step of Adam on the 550M's parameters, by each library that is there."""

import importlib
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.piece import Result, keep, main
from benchmarks.gpu.timing import device_of
from benchmarks.timing import in_turns

ADAMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "torch": ("torch.optim", "AdamW", {}),  # as Megatron calls it where there is neither of the last two
    "torch, fused": ("torch.optim", "AdamW", {"fused": True}),
    "transformer_engine": ("transformer_engine.pytorch.optimizers", "FusedAdam", {}),
    "apex": ("apex.optimizers", "FusedAdam", {}),
}
BYTES = 28
"""Of a parameter in fp32: itself, its gradient and both moments are read, all but the gradient written."""


def run(dry: bool) -> Result:
    """One step of Adam on the 550M's parameters, by each library that is there."""
    device = device_of(dry)
    shapes = parameter_shapes(layers=2, hidden=64, ffn=176, kv=32, vocabulary=512) if dry else None
    shapes = shapes or parameter_shapes(layers=16, hidden=1536, ffn=4096, kv=384, vocabulary=100352)
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    result: Result = {"parameters": elements, "steps": {}}
    for name, (module, kind, more) in ADAMS.items():
        try:
            adam = getattr(importlib.import_module(module), kind)
        except ImportError as error:
            result["steps"][name] = {"skipped": str(error)}
            continue
        parameters = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        times = one_after_another(adam, parameters, more, 3 if dry else 10, device)
        median = statistics.median(times)
        result["steps"][name] = {"ms": median * 1e3, "gb_per_second": BYTES * elements / median / 1e9}
        keep(**result)
    return result


def one_after_another(
    adam: Callable[..., Any],
    parameters: Iterable[torch.Tensor],
    more: dict[str, Any],
    rounds: int,
    device: torch.device,
) -> list[float]:
    """Seconds of each step. Only one optimizer's moments are in memory at a time."""
    step = adam(parameters, lr=1e-4, weight_decay=0.1, **more).step
    return in_turns({"step": partial(step)}, rounds, device)["step"]


def parameter_shapes(layers: int, hidden: int, ffn: int, kv: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Of a Llama with tied embeddings; ``kv`` is the width of all keys of a token."""
    layer: list[tuple[int, ...]] = [
        (hidden + 2 * kv, hidden), (hidden, hidden), (2 * ffn, hidden), (hidden, ffn), (hidden,), (hidden,)
    ]  # fmt: skip
    return [(vocabulary, hidden), (hidden,), *layer * layers]


if __name__ == "__main__":
    raise SystemExit(main(run))

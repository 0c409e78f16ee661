"""Which key/value heads of a model keep all keys, by a number for each: DuoAttention (arXiv 2410.10819),
whose retrieval heads are those with the largest gates.

A file of gates is JSON: ``{"gates": [[0.93, 0.12, ...], ...]}``, a list for each layer with a number for each
key/value head.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phd.rules.keys import ByHead, Full
from phd.rules.pattern import LayerPattern

SHARE = 0.5
"""Of the heads, where nothing else is asked for: the paper's for models with grouped queries."""

Gates = Sequence[Sequence[float]]
"""By layer and key/value head."""


def read_gates(path: Path) -> Gates:
    """The gates of a file.

    Raises:
        ValueError: it is not there or holds no gates; names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): correct the path") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    gates = content.get("gates") if isinstance(content, dict) else None
    layers = gates if isinstance(gates, list) else []
    sizes = {len(layer) if isinstance(layer, list) else 0 for layer in layers}
    if len(sizes) != 1 or sizes == {0} or not all(_is_gate(gate) for layer in layers for gate in layer):
        raise ValueError(
            f'{path} holds no gates: write {{"gates": [[0.9, 0.1], ...]}}, for each layer a list with a '
            "number for each key/value head"
        )
    return layers


def _is_gate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def largest(gates: Gates, share: float) -> list[list[bool]]:
    """Which heads are kept whole: of the N heads of all layers together the N - ceil((1 - share) (N - 1))
    with the largest gates, which is the quantile of the paper's code; none for a share of 0, all for 1. Of
    equal gates earlier heads come first.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of full heads must be between 0 and 1, got {share}")
    heads = [(layer, head) for layer, row in enumerate(gates) for head in range(len(row))]
    # 0.3 * 10 is a rounding error above 3
    count = len(heads) - math.ceil(round((1 - share) * (len(heads) - 1), 9)) if share else 0
    ordered = sorted(heads, key=lambda where: -gates[where[0]][where[1]])
    kept = {*ordered[:count]}
    return [[(layer, head) in kept for head in range(len(row))] for layer, row in enumerate(gates)]


def with_full_heads(
    pattern: LayerPattern, gates: Gates, share: float, num_layers: int, heads: int
) -> LayerPattern:
    """``pattern`` with the heads of its sparse layers that ``largest`` names kept whole.

    Args:
        num_layers, heads: layers of the model, and key/value heads of a layer.

    Raises:
        ValueError: the gates are of another shape, the share is none, or no layer of the pattern is sparse or
            one has heads that differ already.
    """
    if (len(gates), len(gates[0])) != (num_layers, heads):
        raise ValueError(
            f"the gates are of {len(gates)} layers with {len(gates[0])} key/value heads, and the model has "
            f"{num_layers} layers with {heads}: take the gates of this model"
        )
    layers = pattern.layers(num_layers)
    if all(keys.full for keys in layers):
        raise ValueError(
            f"full heads are of layers that are sparse otherwise, and the attention pattern {pattern} has "
            "none: write what the other heads keep, as in --attention-pattern sink.64.1.5"
        )
    if named := [keys for keys in layers if keys.heads is not None]:
        raise ValueError(
            f"--attention-pattern has heads that differ already ({named[0]}): write one or the other"
        )
    full = Full()
    rows = zip(layers, largest(gates, share), strict=True)
    return LayerPattern.of(
        tuple(ByHead.join((1, full if kept else keys) for kept in row) for keys, row in rows)
    )


def asked_pattern(
    text: str, file: str | None, share: float | None, num_layers: int, heads: int
) -> LayerPattern:
    """What --attention-pattern, --full-heads and --full-heads-share say together.

    Args:
        text: of --attention-pattern.
        num_layers, heads: layers of the model, and key/value heads of a layer.

    Raises:
        ValueError: they do not fit the model, or each other; names the flag.
    """
    try:
        pattern = LayerPattern.parse(text)
        pattern.layers(num_layers, heads)
    except ValueError as error:
        raise ValueError(f"--attention-pattern: {error}") from error
    if file is None:
        if share is not None:
            raise ValueError("--full-heads-share is of --full-heads: pass it too, or leave this out")
        return pattern
    share = SHARE if share is None else share
    try:
        return with_full_heads(pattern, read_gates(Path(file)), share, num_layers, heads)
    except ValueError as error:
        raise ValueError(f"--full-heads {file}: {error}") from error

"""Which layers of a trained model need full attention: `phd eval --rank-layers`.

Each layer by itself is made sparse, and the loss of the same pieces of text rises or does not. The layers
that it rises most for stay full, as many of them as LongGen's middle third has, so that both cost the same.
Other pieces, which had no part in the choice, tell what the chosen pattern loses beside the middle third.

Nothing is trained: a model trained on with the pattern may lose less. That layers add up is assumed in the
choice, and judged by the comparison.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Any

from phd.compare.statistics import PairedDifference, paired_difference
from phd.rules.keys import Full, Keys, parse_keys
from phd.rules.pattern import LayerPattern, middle_third


@dataclass(frozen=True)
class Change:
    """What a sparse layer, or a pattern, adds to the loss."""

    mean: float
    """over pieces, in nats a token"""
    standard_error: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Change":
        return cls(fmean(differences), stdev(differences) / sqrt(len(differences)))


@dataclass(frozen=True)
class Ranking:
    """Of the layers, and what the pattern made from it is worth."""

    loss: float
    """of the pieces to rank by, all layers full"""
    layers: list[Change]
    """of each layer alone, from the first on"""
    chosen: tuple[Keys, ...]
    held_out_loss: float
    """of the pieces to compare on, all layers full"""
    held_out: dict[str, Change]
    """of the patterns ``chosen``, ``middle third`` and ``all sparse``"""
    chosen_less_third: PairedDifference
    """the losses of the same pieces; negative where the chosen pattern is better"""

    @property
    def pattern(self) -> str:
        """As --attention-pattern takes it."""
        return str(LayerPattern.of(self.chosen))

    def report(self) -> dict[str, Any]:
        """For JSON."""
        report = asdict(self)
        del report["chosen"]
        return {"pattern": self.pattern, **report}


def sparse_keys(text: str, length: int) -> Keys:
    """The rule that --rank-layers tries.

    Raises:
        ValueError: it is none, or of training alone, or hides nothing in ``length`` tokens.
    """
    try:
        keys = parse_keys(text)
    except ValueError as error:
        raise ValueError(f"--rank-layers: {error}") from None
    if keys.trained_only:
        raise ValueError(f"--rank-layers {text}: layers are full in inference: take sink or block-sparse")
    if keys.pairs(length) == Full().pairs(length):
        raise ValueError(
            f"--rank-layers {text} hides nothing in {length} tokens: write smaller numbers, as in sink.64.1.4"
        )
    return keys


def rank(
    losses: Callable[[Sequence[Keys], Sequence[Any]], Sequence[float]],
    num_layers: int,
    keys: Keys,
    pieces: Sequence[Any],
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Ranking:
    """Rank by the first half of ``pieces``, compare on the second.

    Args:
        losses: layers' rules and pieces -> the loss of each piece.
        keys: of a sparse layer.
        pieces: at least 4.

    Raises:
        ValueError: a loss is not finite.
    """

    def measured(pattern: Sequence[Keys], pieces: Sequence[Any]) -> Sequence[float]:
        values = losses(pattern, pieces)
        if not all(map(isfinite, values)):
            raise ValueError("--rank-layers: a loss is not finite: nothing can be said of this model")
        return values

    half = len(pieces) // 2
    ranked, held_out = pieces[:half], pieces[half:]
    full: tuple[Keys, ...] = (Full(),) * num_layers

    def alone(layer: int) -> tuple[Keys, ...]:
        return (*full[:layer], keys, *full[layer + 1 :])

    base = measured(full, ranked)
    layers = [_change(measured(alone(layer), ranked), base) for layer in progress(range(num_layers))]
    third = middle_third(keys, num_layers)
    order = sorted(range(num_layers), key=lambda layer: -layers[layer].mean)
    stay = {*order[: third.count(Full())]}
    chosen = tuple(Full() if layer in stay else keys for layer in range(num_layers))
    patterns = {"chosen": chosen, "middle third": third, "all sparse": (keys,) * num_layers}
    held_out_base = measured(full, held_out)
    held_out_losses = {name: measured(pattern, held_out) for name, pattern in patterns.items()}
    difference = paired_difference(_differences(held_out_losses["chosen"], held_out_losses["middle third"]))
    assert difference is not None
    return Ranking(
        loss=fmean(base),
        layers=layers,
        chosen=chosen,
        held_out_loss=fmean(held_out_base),
        held_out={name: _change(values, held_out_base) for name, values in held_out_losses.items()},
        chosen_less_third=difference,
    )


def _differences(values: Sequence[float], base: Sequence[float]) -> list[float]:
    return [value - other for value, other in zip(values, base, strict=True)]


def _change(values: Sequence[float], base: Sequence[float]) -> Change:
    return Change.of(_differences(values, base))

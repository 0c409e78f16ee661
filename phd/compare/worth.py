"""A difference of losses in units of model size: the factor of parameters with the same effect, by a
scaling law."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from phd.compare.logs import RunLog
from phd.rules.costs import Shape
from phd.rules.variant import Variant
from phd.run.record import TRAINED_IN_GROUPS


@dataclass(frozen=True)
class ScalingLaw:
    """Loss of a vanilla model by its parameters N, everything else as it is: E + (A / N) ** alpha."""

    floor: float
    """E, in nats per token."""
    scale: float
    """A, in parameters."""
    exponent: float
    about: str
    """Where it comes from, for the reader of a table."""

    def parameters_factor(self, difference: float, parameters: int) -> float | None:
        """How many times the parameters a vanilla model would need to have its loss changed by
        ``difference``; below 1 where the loss is higher. None where no size is enough.
        """
        reducible = (self.scale / parameters) ** self.exponent
        left = 1 + difference / reducible
        return left ** (-1 / self.exponent) if left > 0 else None

    @classmethod
    def fit(cls, runs: Sequence[RunLog]) -> "ScalingLaw":
        """The law of these vanilla runs, by least squares over their last validation losses.

        Raises:
            ValueError: one is no vanilla run or has no validation, or they have fewer than three sizes; or
                their losses do not fall with size as such a law does.
        """
        from scipy.optimize import curve_fit  # slow to import, and seldom asked for

        points: dict[int, list[float]] = {}
        for run in runs:
            if run.name != str(Variant()) or (loss := run.final_validation_loss) is None:
                raise ValueError(f"--sizes: {run.path} is no vanilla run with a validation: leave it out")
            points.setdefault(run.parameters, []).append(loss)
        if len(points) < 3:
            raise ValueError(f"--sizes has vanilla runs of {len(points)} sizes: a law takes three or more")
        sizes, losses = zip(*((size, loss) for size, of in points.items() for loss in of), strict=True)
        lowest = min(losses)
        try:
            (floor, log_scale, exponent), _ = curve_fit(
                lambda sizes, floor, log_scale, exponent: floor + 2.0 ** (exponent * (log_scale - sizes)),
                [math.log2(size) for size in sizes],
                losses,
                p0=(0.7 * lowest, math.log2(min(sizes)), 0.2),
                bounds=((0, 0, 0.001), (lowest, 100, 2)),
            )
        except RuntimeError as error:
            raise ValueError(f"--sizes: no law of scale fits these runs ({error}): add sizes") from error
        return cls(floor, 2.0**log_scale, exponent, f"a law fitted to vanilla runs of {len(points)} sizes")


PARSCALE = ScalingLaw(
    1.29113388,
    0.19527482e9,
    0.1964474,
    "ParScale's law (arXiv 2505.10475, of the Pile and 0.5B to 4.4B parameters: elsewhere an extrapolation)",
)
"""Fitted by least squares to the losses that the authors print for the Pile, with their term k ln P for P
streams (k = 0.334); it is off by 0.011 nats at most.
"""


def kv_cache_ratio(run: RunLog) -> float | None:
    """Bytes of the KV cache of a sequence of the run's length, to vanilla's; None where the run recorded no
    depth, or its name is no variant's.
    """
    arguments = run.arguments or {}
    depth = arguments.get("num_layers")
    if depth is None:
        return None
    heads = arguments.get(
        "num_query_groups" if arguments.get("group_query_attention") else "num_attention_heads"
    )
    shape = Shape(
        hidden_size=1,
        num_attention_heads=heads or 1,
        num_query_groups=heads or 1,
        kv_channels=1,
        vocab_size=1,
        mlp_products=[0] * depth,
    )
    try:
        ours, vanilla = (
            variant.kv_cache_bytes(shape, run.seq_length, 1)
            for variant in (Variant.parse(run.name.removesuffix(TRAINED_IN_GROUPS)), Variant())
        )
    except ValueError:
        return None
    return ours / vanilla

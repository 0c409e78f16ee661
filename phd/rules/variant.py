"""The attention of a model, and its name.

The name has the model's copies, then the pattern of its layers: ``vanilla``, ``PHD-SWA-5-16-inf``,
``longgen-sink``, ``PHD-CSWA-2-16-32+10sink-12full-10sink``. It fits folders, SLURM and W&B ([A-Za-z0-9.+-]+),
tells apart what differs, and is read back by ``Variant.parse``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phd.rules.copies import Copies
from phd.rules.costs import Shape
from phd.rules.pattern import LayerPattern
from phd.rules.rule import AttentionRule

ARGUMENTS = (
    *("phd_copies", "phd_window", "phd_chunk", "phd_naive", "attention_pattern"),
    # of runs before a kind's numbers were written into the pattern
    *("attention_pattern_block", "attention_pattern_sink_blocks", "attention_pattern_local_blocks"),
    *("attention_pattern_stride", "attention_pattern_stride_local_blocks"),
)
"""The arguments of a run that say its variant, by Megatron's names."""


@dataclass(frozen=True)
class Variant:
    """What tells models apart beside their shape. Not bound to a depth.

    Raises:
        ValueError: naive repetition with sparse layers.
    """

    copies: Copies = Copies()
    pattern: LayerPattern = LayerPattern()

    def __post_init__(self) -> None:
        if not self.pattern.sparse:
            object.__setattr__(self, "pattern", LayerPattern())
        elif self.copies.cached:
            raise ValueError(
                "naive repetition has full layers alone: leave out the pattern or the repetition"
            )

    def __str__(self) -> str:
        if not self.pattern.sparse:
            return str(self.copies)
        return str(self.pattern) if self.copies.count == 1 else f"{self.copies}+{self.pattern}"

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """Inverse of ``str``.

        Raises:
            ValueError: it is no name of a variant.
        """
        first, *rest = name.split("+")
        try:
            if len(rest) > 1:
                raise ValueError("write the copies and one pattern, as in PHD-CSWA-2-16-32+longgen-sink")
            if rest:
                return cls(Copies.parse(first), LayerPattern.parse(rest[0]))
            if first == "vanilla" or first.startswith(("PHD-", "naive-")):
                return cls(Copies.parse(first))
            return cls(pattern=LayerPattern.parse(first))
        except ValueError as error:
            raise ValueError(f"{name!r} names no variant: {error}") from error

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "Variant":
        """From the arguments of a run by Megatron's names: of a command line, a checkpoint or phd_run.json.
        What is missing is vanilla's.

        Raises:
            ValueError: a value is out of range, or the pattern is none.
        """
        copies = Copies(
            arguments.get("phd_copies", 1),
            arguments.get("phd_window", 1),
            arguments.get("phd_chunk", 0) or None,
            arguments.get("phd_naive", False),
        )
        return cls(copies, LayerPattern.from_arguments(arguments))

    def layers(self, num_layers: int) -> tuple[AttentionRule, ...]:
        """The rule of each of ``num_layers`` layers.

        Raises:
            ValueError: the pattern is one of another depth.
        """
        return tuple(AttentionRule(self.copies, keys) for keys in self.pattern.layers(num_layers))

    def outside_training(self, num_layers: int) -> "Variant":
        """As validation and inference have it, with a pattern that lists its layers.

        Raises:
            ValueError: the pattern is one of another depth.
        """
        layers = (rule.outside_training.keys for rule in self.layers(num_layers))
        return Variant(self.copies, LayerPattern.of(tuple(layers)))

    def flops_per_token(self, shape: Shape, seq_length: int, *, prune_last_layer: bool = False) -> float:
        """Training FLOPs (forward and backward) per original token, in samples of one document.

        Args:
            prune_last_layer: in the last layer the copies but the last have queries, keys and values alone.

        Raises:
            ValueError: ``seq_length`` is below 1, or the pattern is one of another depth.
        """
        count = self.copies.count

        def layer(rule: AttentionRule, mlp: int, pruned: bool) -> float:
            # the kernel of naive repetition has all copies in one sequence: it computes what is then dropped
            pairs = rule.visible_pairs(seq_length, last_copy_only=pruned and not self.copies.cached)
            # one dot product and one weighted sum of length kv_channels for each pair and head
            products = 2 * shape.query_size * pairs / seq_length
            rest = shape.hidden_size * shape.query_size + mlp
            return count * shape.projection + (1 if pruned else count) * rest + products

        *others, last = zip(self.layers(shape.num_layers), shape.mlp_products, strict=True)
        layers = sum(layer(*each, False) for each in others) + layer(*last, prune_last_layer)
        return 3 * 2 * (layers + shape.hidden_size * shape.vocab_size)

    def kv_cache_bytes(self, shape: Shape, seq_length: int, bytes_per_element: int) -> int:
        """Bytes of keys and values that one sequence keeps once ``seq_length`` positions have been decoded.

        Originals: every position, as in a vanilla model; on a sparse layer those that the next position sees.
        Hidden copies: those that the next position sees, so none with W = 1, at most (W - 1) (K - 1) with a
        window, and with chunks none right after a chunk's end. Naive repetition keeps all K copies.

        Raises:
            ValueError: the pattern is one of another depth.
        """
        rules = self.layers(shape.num_layers)
        entries = sum(rule.outside_training.retained(seq_length) for rule in rules)
        return 2 * shape.num_query_groups * shape.kv_channels * bytes_per_element * entries

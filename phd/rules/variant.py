"""The attention of a model, and its name.

The name has the model's copies, their embedding, then the pattern of its layers: ``vanilla``,
``PHD-SWA-5-16-inf``, ``longgen-sink``, ``PHD-CSWA-2-16-32+vector``, ``PHD-3+table+10sink-12full-10sink``.
It fits folders, SLURM and W&B ([A-Za-z0-9.+-]+), tells apart what differs, and is read back by
``Variant.parse``.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from phd.rules.copies import Copies
from phd.rules.costs import Shape
from phd.rules.pattern import LayerPattern
from phd.rules.rule import AttentionRule

NAMED = (
    *("phd_copies", "phd_window", "phd_chunk", "phd_naive", "phd_consecutive_positions"),
    *("phd_copy_embedding", "attention_pattern"),
)
"""The arguments of a run that follow from the name of its variant, by Megatron's names."""

ARGUMENTS = (
    *NAMED,
    # of runs before a kind's numbers were written into the pattern
    *("attention_pattern_block", "attention_pattern_sink_blocks", "attention_pattern_local_blocks"),
    *("attention_pattern_stride", "attention_pattern_stride_local_blocks"),
)
"""The arguments of a run that determine its variant, by Megatron's names."""

LINEAR_LAYERS = ("linear_qkv", "linear_proj", "mlp", "output_layer")
"""The parts of a model whose weights multiply every row, by Megatron's names."""

COPY_EMBEDDINGS = ("none", "vector", "table")
"""The input of the first layer for a hidden copy: its token's embedding; the same plus a learned vector of
the copy; or its token's row in an embedding table of the copy. ``none`` is the paper's."""

_COPY_PARAMETERS = {
    "vector": "copy_embedding.vectors.{}",
    "table": "copy_embedding.tables.{}.word_embeddings.weight",
}


def copy_parameter(embedding: str, copy: int) -> str:
    """The name, in Megatron's model and checkpoints, of the copy embedding's parameter for hidden copy
    ``copy`` (1..K-1). Names count from 0, which is copy 1's.

    Args:
        embedding: ``vector`` or ``table``.
    """
    return _COPY_PARAMETERS[embedding].format(copy - 1)


@dataclass(frozen=True)
class Variant:
    """What distinguishes models of one shape. Not bound to a depth.

    Raises:
        ValueError: naive repetition with sparse layers, an unknown embedding, or one without hidden copies.
    """

    copies: Copies = Copies()
    pattern: LayerPattern = LayerPattern()
    embedding: str = "none"
    """One of ``COPY_EMBEDDINGS``."""

    def __post_init__(self) -> None:
        if self.embedding not in COPY_EMBEDDINGS:
            raise ValueError(f"{self.embedding!r} is no copy embedding: take {', '.join(COPY_EMBEDDINGS)}")
        if self.embedding != "none" and not self.copies.hidden:
            raise ValueError("a copy embedding is of hidden copies: it needs at least 2 copies")
        if not self.pattern.sparse:
            object.__setattr__(self, "pattern", LayerPattern())
        elif self.copies.cached:
            raise ValueError(
                "naive repetition has full layers alone: leave out the pattern or the repetition"
            )

    def __str__(self) -> str:
        parts = [str(self.copies)] if self.copies.hidden or not self.pattern.sparse else []
        if self.embedding != "none":
            parts.append(self.embedding)
        if self.pattern.sparse:
            parts.append(str(self.pattern))
        return "+".join(parts)

    @property
    def label(self) -> str:
        """The name where it has at most 100 characters, else its beginning and a digest: for what takes no
        longer ones, as W&B. A pattern whose heads differ in every layer is long."""
        name = str(self)
        if len(name) <= 100:
            return name
        return f"{name[:88]}...{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """Inverse of ``str``.

        Raises:
            ValueError: it is no name of a variant.
        """
        first, *rest = name.split("+")
        try:
            if not rest and first != "vanilla" and not first.startswith(("PHD-", "naive-")):
                return cls(pattern=LayerPattern.parse(first))
            embedding = rest.pop(0) if rest and rest[0] in COPY_EMBEDDINGS else "none"
            if len(rest) > 1:
                raise ValueError(
                    "write the copies, their embedding and one pattern, as in "
                    "PHD-CSWA-2-16-32+vector+longgen-sink"
                )
            return cls(Copies.parse(first), LayerPattern.parse(rest[0] if rest else "full"), embedding)
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
            arguments.get("phd_consecutive_positions", False),
        )
        embedding = arguments.get("phd_copy_embedding", "none")
        return cls(copies, LayerPattern.from_arguments(arguments), embedding)

    def layers(self, num_layers: int, heads: int | None = None) -> tuple[AttentionRule, ...]:
        """The rule of each of ``num_layers`` layers.

        Args:
            heads: key/value heads of a layer, where they are known.

        Raises:
            ValueError: the pattern is one of another depth, or of other heads.
        """
        return tuple(AttentionRule(self.copies, keys) for keys in self.pattern.layers(num_layers, heads))

    def outside_training(self, num_layers: int) -> "Variant":
        """As validation and inference have it, with a pattern that lists its layers.

        Raises:
            ValueError: the pattern is one of another depth.
        """
        layers = (rule.outside_training.keys for rule in self.layers(num_layers))
        return replace(self, pattern=LayerPattern.of(tuple(layers)))

    def flops_per_token(
        self,
        shape: Shape,
        seq_length: int,
        *,
        prune_last_layer: bool = False,
        frozen: Collection[str] = (),
    ) -> float:
        """Training FLOPs (forward and backward) per original token, in samples of one document.

        Args:
            prune_last_layer: in the last layer the copies but the last have queries, keys and values alone.
            frozen: of LINEAR_LAYERS those whose weights do not train: backward then computes one product of
                them in place of two.

        Raises:
            ValueError: ``seq_length`` is below 1, or the pattern is one of another depth, or of other heads.
        """
        count = self.copies.count

        def times(name: str, products: float) -> float:
            """Multiply-adds forward and backward."""
            return (2 if name in frozen else 3) * products

        def layer(rule: AttentionRule, mlp: int, pruned: bool) -> float:
            # the kernel of naive repetition has all copies in one sequence: it computes what is then dropped
            pairs = rule.visible_pairs(seq_length, last_copy_only=pruned and not self.copies.cached)
            # one dot product and one weighted sum of length kv_channels for each pair and head
            products = 2 * shape.query_size * pairs / seq_length
            before, behind = shape.adapters
            rest = times("linear_proj", shape.hidden_size * shape.query_size) + times("mlp", mlp)
            rows = 1 if pruned else count
            return (
                count * (times("linear_qkv", shape.projection) + 3 * before)
                + rows * (rest + 3 * behind)
                + 3 * products
            )

        rules = self.layers(shape.num_layers, shape.num_query_groups)
        *others, last = zip(rules, shape.mlp_products, strict=True)
        layers = sum(layer(*each, False) for each in others) + layer(*last, prune_last_layer)
        return 2 * (layers + times("output_layer", shape.hidden_size * shape.vocab_size))

    def kv_cache_bytes(self, shape: Shape, seq_length: int, bytes_per_element: int) -> int:
        """Bytes of keys and values that one sequence keeps once ``seq_length`` positions have been decoded.

        Originals: every position, as in a vanilla model; on a sparse layer those that the next position sees.
        Hidden copies: those that the next position sees, so none with W = 1, at most (W - 1) (K - 1) with a
        window, and with chunks none right after a chunk's end. Naive repetition keeps all K copies.

        Raises:
            ValueError: the pattern is one of another depth, or of other heads.
        """
        rules = self.layers(shape.num_layers, shape.num_query_groups)
        entries = sum(rule.outside_training.retained(seq_length) for rule in rules)
        return round(2 * shape.num_query_groups * shape.kv_channels * bytes_per_element * entries)

"""The copy embedding: hidden copies enter the first layer as their token's embedding plus a learned vector
for each copy (``vector``), or as their token's row in an embedding table for each copy (``table``, as in
Hidden Decoding, arXiv 2607.08186).

A submodule of the model, ``copy_embedding``. Parameters are counted by hidden copy, copy 1 is number 0:
``vectors.0`` [h], or ``tables.0.word_embeddings.weight`` [vocabulary / tensor-parallel size, h].
"""

from megatron.core import parallel_state
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, no_grad, stack
from torch.nn import Parameter

from phd.megatron.transformer_config import PHDTransformerConfig

ROWS = 8192
"""Rows of a table whose norm is computed at a time."""


class CopyVectors(MegatronModule):
    """A vector of each hidden copy, zero at first. Megatron decays no parameter of one dimension."""

    def __init__(self, config: PHDTransformerConfig, weight: Tensor) -> None:
        super().__init__(config)
        for number in range(config.variant.copies.hidden):
            vector = Parameter(weight.new_zeros(config.hidden_size))
            # each tensor-parallel rank adds it to a slice of the sequence: Megatron sums the gradients then
            setattr(vector, "sequence_parallel", config.sequence_parallel)  # noqa: B010
            self.register_parameter(str(number), vector)

    def forward(self, originals: Tensor, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        """``originals`` [s, b, h] -> the same for each hidden copy. Tokens and positions are not read."""
        return [originals + vector for vector in self.parameters()]

    def squared_distances(self, embedding: Tensor) -> list[Tensor]:
        """A sum for each hidden copy; zeros on ranks that hold a replica."""
        share = 1 if parallel_state.get_tensor_model_parallel_rank() == 0 else 0
        return [share * vector.float().square().sum() for vector in self.parameters()]


class CopyTables(MegatronModule):
    """An embedding of each hidden copy, Megatron's own and split as the model's, of which it is a copy at
    first. With dropout each copy drops elements of its own.
    """

    def __init__(self, config: PHDTransformerConfig, embedding: LanguageModelEmbedding) -> None:
        super().__init__(config)
        # phd.training.unsupported refuses it: each table would have positions of its own
        assert not embedding.add_position_embedding
        weight = embedding.word_embeddings.weight
        for number in range(config.variant.copies.hidden):
            table = _uninitialized(config, embedding)
            copied = table.word_embeddings.weight
            with no_grad():
                copied.copy_(weight)
            # by these marks optimizers know an embedding (--decoupled-lr, --optimizer muon, --use-mup)
            for mark in ("is_embedding_or_output_parameter", "is_embedding_parameter"):
                if hasattr(weight, mark):
                    setattr(copied, mark, getattr(weight, mark))
            self.add_module(str(number), table)

    def forward(self, originals: Tensor, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        """``input_ids`` [b, s] -> [s, b, h] for each hidden copy. The originals' embedding is not read."""
        return [table(input_ids, position_ids) for table in self.children()]

    def squared_distances(self, embedding: Tensor) -> list[Tensor]:
        """For each hidden copy, this rank's part of the mean over the vocabulary."""
        distances = []
        for table in self.children():
            weight, rows = table.word_embeddings.weight, table.word_embeddings.num_embeddings
            # a piece at a time: no second table in fp32
            pieces = zip(weight.split(ROWS), embedding.split(ROWS), strict=True)
            distances.append(sum((ours.float() - its.float()).square().sum() for ours, its in pieces) / rows)
        return distances


class CopyEmbedding(MegatronModule):
    """The embedded copies of tokens. The original's is the model's embedding."""

    def __init__(self, config: PHDTransformerConfig, embedding: LanguageModelEmbedding) -> None:
        super().__init__(config)
        if config.phd_copy_embedding == "vector":
            self.vectors = CopyVectors(config, embedding.word_embeddings.weight)
        else:
            self.tables = CopyTables(config, embedding)

    def forward(self, originals: Tensor, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """``originals`` [s, b, h], embedded -> [s, b*K, h], row = sample * K + copy.

        Args:
            originals: as the embedding gives them: under sequence parallelism a slice of the sequence.
            input_ids: [b, s] of the whole sequence (of this context-parallel rank).
            position_ids: the same.
        """
        copies = [originals, *self._hidden(originals, input_ids, position_ids)]
        # K times [s, b, h] -> [s, b, K, h] -> [s, b*K, h]
        return stack(copies, dim=2).flatten(1, 2)

    @no_grad()
    def squared_distances(self, embedding: Tensor) -> Tensor:
        """How far from its token's embedding each hidden copy enters, squared: a vector's norm; for a table
        the mean over the vocabulary. [K - 1], parts that are to be added up over tensor-parallel ranks.

        Args:
            embedding: weight of the model's, this rank's part.
        """
        return stack(self._hidden.squared_distances(embedding))

    @property
    def _hidden(self) -> CopyVectors | CopyTables:
        return self.vectors if self.config.phd_copy_embedding == "vector" else self.tables


def add_copy_embedding(model: GPTModel) -> None:
    """Add a CopyEmbedding to a built pipeline stage that embeds, right after its embedding."""
    later = [(name, child) for name, child in model.named_children() if name != "embedding"]
    # Megatron's buckets of gradients and of gathered parameters follow the order of the children
    for name, _ in later:
        delattr(model, name)
    model.copy_embedding = CopyEmbedding(model.config, model.embedding)
    for name, child in later:
        setattr(model, name, child)


def _uninitialized(config: PHDTransformerConfig, embedding: LanguageModelEmbedding) -> LanguageModelEmbedding:
    """An embedding like ``embedding``, for whose weights no random number is drawn: a model's other random
    numbers do not depend on its tables.
    """
    initialize = config.perform_initialization
    config.perform_initialization = False
    try:
        return LanguageModelEmbedding(
            config,
            vocab_size=embedding.vocab_size,
            max_sequence_length=embedding.max_sequence_length,
            position_embedding_type="none",
            scatter_to_sequence_parallel=embedding.scatter_to_sequence_parallel,
            tp_group=embedding.tp_group,
        )
    finally:
        config.perform_initialization = initialize

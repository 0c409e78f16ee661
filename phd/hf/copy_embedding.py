"""The inputs of the first layer for the copies of a token, and their weights: ``Variant.embedding``.

Legend: b samples, q slots, K copies, h hidden size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import initialization

from phd.hf.configuration import PHDLlamaConfig


class CopyVectors(torch.nn.Module):
    """A vector of each hidden copy, [h]. A module, since accelerate loads weights when one is called."""

    def __init__(self, count: int, hidden_size: int) -> None:
        super().__init__()
        for index in range(count):
            self.register_parameter(str(index), torch.nn.Parameter(torch.zeros(hidden_size)))

    def forward(self, originals: Tensor) -> Tensor:
        """[b, q, 1, h] -> [b, q, K - 1, h]"""
        return originals + torch.stack([*self.parameters()])


class CopyTable(torch.nn.Embedding):
    """The embedding table of a hidden copy. It starts as a copy of the model's embedding, so it draws no
    random numbers.
    """

    def reset_parameters(self) -> None:
        """Done by ``PHDLlamaModel``, which has the embedding to copy."""


class CopyEmbedding(torch.nn.Module):
    """Copy 0 enters as its token's embedding; hidden copy c as that and vector c - 1, or as the token's row
    of table c - 1 (as in Hidden Decoding, arXiv 2607.08186), where the variant has them.
    """

    def __init__(self, config: PHDLlamaConfig) -> None:
        super().__init__()
        self.copies, self.kind = config.copies.count, config.variant.embedding
        hidden, shape = config.copies.hidden, (config.vocab_size, config.hidden_size, config.pad_token_id)
        self.vectors = CopyVectors(hidden if self.kind == "vector" else 0, config.hidden_size)
        tables = range(hidden if self.kind == "table" else 0)
        self.tables = torch.nn.ModuleList(CopyTable(*shape) for _ in tables)

    def forward(self, embeddings: Tensor, ids: Tensor | None) -> Tensor:
        """[b, q, K, h]; a view if all copies enter alike.

        Args:
            embeddings: [b, q, h], of the tokens.
            ids: [b, q]; tables need them.
        """
        originals = embeddings.unsqueeze(2)
        if self.kind == "vector":
            hidden = self.vectors(originals)
        elif self.kind == "table":
            hidden = torch.stack([table(ids) for table in self.tables], dim=2)
        else:
            return originals.expand(-1, -1, self.copies, -1)
        return torch.cat([originals, hidden], dim=2)


class ResizedTables:
    """Lets the tables follow ``resize_token_embeddings``. To be inherited before the model's class."""

    base_model: Any

    def _resize_token_embeddings(self, *args: Any, **kwargs: Any) -> torch.nn.Embedding:
        embeddings = super()._resize_token_embeddings(*args, **kwargs)  # type: ignore[misc]
        tables = self.base_model.copy_embedding.tables
        for index, table in enumerate(tables):
            tables[index] = self._get_resized_embeddings(table, *args, **kwargs)  # type: ignore[attr-defined]
        return embeddings


def initialize(module: torch.nn.Module, embedding: torch.nn.Embedding) -> bool:
    """Set the weights that ``module`` itself has as training begins them: all copies enter alike.

    Returns:
        whether it is of a CopyEmbedding.
    """
    if isinstance(module, CopyTable):
        initialization.copy_(module.weight, embedding.weight)
    elif isinstance(module, CopyVectors):
        for vector in module.parameters():
            initialization.zeros_(vector)
    else:
        return False
    return True

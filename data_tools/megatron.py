"""Megatron's indexed dataset, imported only when it is needed: that takes seconds."""

import warnings
from types import ModuleType


def indexed_dataset() -> ModuleType:
    """``megatron.core.datasets.indexed_dataset``, without its warnings on GPU libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset

"""ProLong's order of packed samples: ranks that compute at the same time get samples of like cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset
from torch.utils.data import Dataset


class SortedBatches(Dataset[Any]):
    """The training samples, those of each global batch by the sum of their documents' squared lengths, the
    largest first (ProLong, arXiv 2410.02660, section on the attention's variable lengths).

    Megatron deals a batch out in order: micro batch after micro batch, and in each rank after rank. So ranks
    that wait for each other after a micro batch, or hand it on, compute about as many pairs of tokens. What
    an iteration trains on is the same as without.
    """

    def __init__(self, samples: BlendedDataset | GPTDataset, batch: int) -> None:
        """Args: batch: samples of an iteration."""
        self.samples = samples
        self.batch = batch
        self._first = -1
        self._order: Sequence[int] = ()
        """Of the batch from sample ``_first`` on."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, idx: int) -> Any:
        first = idx - idx % self.batch
        if first != self._first:
            stop = min(first + self.batch, len(self.samples))
            costs = [squared_lengths(self.samples, place) for place in range(first, stop)]
            self._order = np.argsort(costs, kind="stable")[::-1].tolist()
            self._first = first
        return self.samples[first + self._order[idx - first]]


def squared_lengths(samples: BlendedDataset | GPTDataset, idx: int) -> int:
    """The sum of the squared lengths of a sample's documents, by Megatron's indices: no token is read."""
    if isinstance(samples, BlendedDataset):
        return squared_lengths(
            samples.datasets[samples.dataset_index[idx]], int(samples.dataset_sample_index[idx])
        )
    place = samples.shuffle_index[idx]
    (first, begin), (last, end) = (
        samples.sample_index[place].tolist(),
        samples.sample_index[place + 1].tolist(),
    )
    lengths = samples.dataset.sequence_lengths[samples.document_index[first : last + 1]].astype(np.int64)
    lengths[-1] = end
    lengths[0] -= begin
    return int(np.square(lengths).sum())

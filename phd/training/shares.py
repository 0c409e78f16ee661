"""For the record: what share of the samples trained on so far came from each data set of a blend."""

from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.training.utils import get_blend_and_blend_per_split

from phd.run.record import DATA_SHARE

PART = 1 << 24
"""Samples counted at a time."""


class DataShares:
    """Counts by Megatron's own order of the blend: exact, whatever read the samples."""

    def __init__(self, args: Namespace) -> None:
        blend, per_split = get_blend_and_blend_per_split(args)
        if per_split is not None:
            blend = per_split[0]
        self._names = scalar_names(blend[0] if blend and not args.mock_data else [])
        self._data: BlendedDataset | None = None
        self._counts = np.zeros(len(self._names), np.int64)
        self._seen = 0

    def built(self, train: Any) -> None:
        """The training data set is built on this rank: the first one has it in any layout."""
        if isinstance(train, BlendedDataset):
            self._data = train

    def until(self, samples: int) -> dict[str, float]:
        """By the name of a scalar, the shares of the first ``samples``; all have the same number of tokens.
        Every rank must call it, and none waits for it where there are not several data sets.
        """
        if len(self._names) < 2 or not samples:
            return {}
        if self._data is not None:
            index = self._data.dataset_index
            if index is None:  # --dataloader-defer-npy-index-mmap
                index = np.load(self._data.path_to_dataset_index, mmap_mode="r", allow_pickle=False)
            for first in range(self._seen, samples, PART):
                part = index[first : min(first + PART, samples)]
                self._counts += np.bincount(part, minlength=len(self._names))
            self._seen = samples
        counts = torch.from_numpy(self._counts.copy()).cuda()
        torch.distributed.broadcast(counts, src=0)  # to the last rank, which keeps the record
        return {name: count / samples for name, count in zip(self._names, counts.tolist(), strict=True)}


def scalar_names(prefixes: list[str]) -> list[str]:
    """Of each data set: by its file, and by its place in the blend where two have files of one name."""
    stems = [Path(prefix).name for prefix in prefixes]
    often = Counter(stems)
    return [
        f"{DATA_SHARE}-{stem}{f'-{place}' if often[stem] > 1 else ''}" for place, stem in enumerate(stems, 1)
    ]

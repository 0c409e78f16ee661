"""A check that Megatron's dataset builder lacks: it never ends where a split that is asked for is empty."""

from collections.abc import Sequence

from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset

SPLITS = ("train", "validation", "test")


def refuse_empty_splits(config: GPTDatasetConfig, num_samples: Sequence[int | None]) -> None:
    """Check that ``--split`` leaves every data set at least one document for each split in use.

    Args:
        config: with its split matrix made.
        num_samples: samples asked for, of train, validation and test.

    Raises:
        ValueError: names the data set, the split and how many documents there are.
    """
    if config.blend is None or config.split_matrix is None:
        return
    for prefix in config.blend[0]:
        documents = len(IndexedDataset(str(prefix)).sequence_lengths)
        for name, wanted, bounds in zip(SPLITS, num_samples, config.split_matrix, strict=True):
            if wanted and bounds is not None and round(bounds[0] * documents) == round(bounds[1] * documents):
                raise ValueError(
                    f"--split {config.split} leaves no document of {prefix} ({documents} documents) for "
                    f"{name}: give it a larger share, or --eval-iters 0 for no evaluation"
                )

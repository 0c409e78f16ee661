"""Shares of a blend's data sets in the record: counted in Megatron's own order, on every layout."""

import json
from argparse import Namespace
from unittest.mock import patch

import numpy as np
import pytest

from phd.run.record import DATA_SHARE
from tests.training.test_e2_llm import train

WEIGHTS = {"source_lines": 0.3, "source_text": 0.7}


@pytest.fixture
def blended(base_flags, data, packed_data) -> list[str]:
    paths = [flags[flags.index("--data-path") + 1] for flags in (packed_data, data)]
    blend = [
        word for path, weight in zip(paths, WEIGHTS.values(), strict=True) for word in (str(weight), path)
    ]
    return [*base_flags, "--global-batch-size", "4", "--data-path", *blend]


def test_shares_of_a_training(world, blended, tmp_path):
    """Broken off where the rank that keeps the record has no data, and gone on with in one process. Megatron
    deals samples out so that no data set is a whole sample off its share.
    """
    layout = "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --exit-interval 2"
    train(world, blended, tmp_path, f"--save-interval 2 {layout}", ranks=4)
    lines = train(world, blended, tmp_path, "--save-interval 2")
    lines = [line for line in lines if line["kind"] == "train"]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        samples = 4 * line["iteration"]
        counts = {name: line[f"{DATA_SHARE}-{name}"] * samples for name in WEIGHTS}
        assert sum(counts.values()) == pytest.approx(samples)
        for name, count in counts.items():
            assert count == pytest.approx(round(count))
            assert abs(count - WEIGHTS[name] * samples) < 1
    assert "data-share" not in json.dumps(json.loads((tmp_path / "phd_run.json").read_text()))


def check_counts(folder: str) -> None:
    """Of three data sets, two with one name, seven samples at a time; also where Megatron leaves the order in
    its file until it is asked for.
    """
    import torch
    from megatron.core.datasets.blended_dataset import BlendedDataset

    from phd.training import shares

    torch.distributed.init_process_group("gloo")
    index = np.random.default_rng(1).integers(0, 3, 50).astype(np.int16)
    paths = ["a/web", "b/web", "b/code"]
    args = Namespace(data_path=paths, mock_data=False, data_args_path=None, per_split_data_args_path=None)
    args.train_data_path = args.valid_data_path = args.test_data_path = None
    args.multiple_validation_sets = args.full_validation = False
    deferred, train = (BlendedDataset.__new__(BlendedDataset) for _ in "12")
    train.dataset_index, deferred.dataset_index = index, None
    deferred.path_to_dataset_index = f"{folder}/index.npy"
    np.save(deferred.path_to_dataset_index, index)
    try:
        for data in (train, deferred):
            counted = shares.DataShares(args)
            counted.built(None)
            counted.built(data)
            assert counted.until(0) == {}
            with patch.object(shares, "PART", 7):
                for samples in (5, 6, 29, 50):
                    wanted = np.bincount(index[:samples], minlength=3) / samples
                    names = [f"{DATA_SHARE}-{name}" for name in ("web-1", "web-2", "code")]
                    assert counted.until(samples) == dict(zip(names, wanted.tolist(), strict=True))
    finally:
        torch.distributed.destroy_process_group()
    args.data_path = paths[:1]
    assert shares.DataShares(args).until(10) == {}


def test_counts(world, tmp_path):
    world.run(check_counts, str(tmp_path))

"""Data sets before Megatron builds them. Damaged files are in test_guard.py."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.trainings import END_OF_DOCUMENT, write_documents
from tests.world import RankFailed, megatron_globals


def limits_of_open_files(soft: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Before, and after a process that begins with ``soft``."""
    import resource

    from phd.training.dataset import allow_open_files

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        allow_open_files()
        return before, resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_open_files_as_the_machine_allows(world):
    """Three for each data set of a blend: 1024, what many machines start with, were too few for 350."""
    ((before, after),) = world.run(limits_of_open_files, 512)
    assert after == (before[1], before[1]) and after[0] > 512


@pytest.fixture
def few(tmp_path) -> str:
    """A data set of three documents, of which Megatron's default --split leaves one part none."""
    write_documents(tmp_path / "few", [np.arange(1, 90)] * 3)
    return str(tmp_path / "few")


def small(base_flags: list[str], *data: str) -> list[str]:
    """Flags for one step on ``data``."""
    at = base_flags.index("--data-path")
    flags = [*base_flags[:at], *base_flags[at + 4 :], "--train-iters", "1", "--num-layers", "1"]
    return [*flags, "--global-batch-size", "2", "--data-cache-path", f"{data[-1]}-cache", *data]


@pytest.mark.parametrize("blend", ["{}", "1 {} 3 {}", "{} {} {}"])
def test_a_split_that_nothing_asks_for_is_not_built(world, base_flags, few, blend):
    """Its remedy, walked: Megatron's builder would never end, or assert that there is a sample."""
    flags = small(base_flags, "--split", "969,30,1", "--data-path", *blend.replace("{}", few).split())
    with pytest.raises(
        RankFailed, match=r"few no document for validation \(3 in all\): give it more, or pass"
    ):
        world.pretrain(flags)
    assert "number of skipped iterations" in world.pretrain([*flags, "--eval-iters", "0"])


def test_an_evaluation_builds_no_training_set(world, base_flags, few):
    flags = small(base_flags, "--split", "1,60,39", "--data-path", few)
    assert "validation loss at iteration 0" in world.pretrain([*flags, "--skip-train"])


def test_documents_without_a_token_are_none(world, base_flags, tmp_path):
    write_documents(tmp_path / "empty", [np.arange(0)] * 8 + [np.arange(90)])
    flags = small(base_flags, "--split", "8,1,0", "--data-path", str(tmp_path / "empty"))
    with pytest.raises(RankFailed, match=r"no token for train \(9 documents in all\): give it more"):
        world.pretrain(flags)
    write_documents(tmp_path / "empty", [np.arange(0)])
    with pytest.raises(RankFailed, match=r"empty.bin of --data-path holds no token: leave it out"):
        world.pretrain(flags)


def test_what_is_asked_for_does_not_rename_the_caches(world, base_flags, few):
    """Else `phd data prepare` for a training with validations would not serve one without."""
    flags = small(base_flags, "--split", "1,1,1", "--data-path", few)
    cache = Path(f"{few}-cache")
    world.pretrain(flags)
    built = {file.name for file in cache.iterdir()}
    for less in ("--eval-iters 0", "--skip-train"):
        world.pretrain([*flags, *less.split()])
        assert {file.name for file in cache.iterdir()} == built
    world.pretrain([*flags, "--dataloader-inter-document-masking"])
    assert {file.name for file in cache.iterdir()} == built


@contextlib.contextmanager
def built(flags: list[str]) -> Iterator[tuple]:
    """In a rank: the data sets of a command line."""
    import sys

    import phd.megatron  # noqa: F401 (before Megatron)

    # isort: split
    from megatron.training import get_tokenizer
    from megatron.training.training import get_train_valid_test_num_samples

    from phd.training.arguments import parse_for_tool
    from phd.training.dataset import build_datasets

    sys.argv = ["pretrain_phd.py", *flags]
    with megatron_globals():
        args = parse_for_tool()
        yield build_datasets(args, get_tokenizer(), get_train_valid_test_num_samples(), lambda: True)


def samples_of(cases: dict[str, list[str]]) -> dict[str, list]:
    """For each case a list of its data sets, each [(tokens, document_starts or None, loss_mask), ...] of 16
    samples.
    """
    found = {}
    for name, flags in cases.items():
        with built(flags) as splits:
            found[name] = [
                [
                    (
                        sample["tokens"].tolist(),
                        starts if starts is None else starts.tolist(),
                        sample["loss_mask"].tolist(),
                    )
                    for sample in (dataset[number] for number in range(min(16, len(dataset))))
                    for starts in (sample.get("document_starts"),)
                ]
                for split in splits
                for dataset in (split if isinstance(split, list) else [split])
                if dataset is not None
            ]
    return found


def test_samples_tell_where_documents_start(world, base_flags, packed_data, tmp_path):
    """By their last tokens and by their lengths; in a blend, in mock data and in each of several validation
    sets; and not where nothing asks for it.
    """
    at = base_flags.index("--data-path")
    common = [*base_flags[:at], *base_flags[at + 4 :], "--data-cache-path", str(tmp_path / "cache")]
    prefix = packed_data[packed_data.index("--data-path") + 1]
    split, lengths = ["--split", "80,10,10"], "--dataloader-inter-document-masking"
    several = ["--train-data-path", prefix, "--valid-data-path", prefix, prefix, "--full-validation"]
    several += ["--multiple-validation-sets", "--eval-micro-batch-size", "1", "--eval-global-batch-size", "1"]
    cases = {
        "last tokens": ["--data-path", prefix, *split, "--reset-attention-mask"],
        "lengths": ["--data-path", prefix, *split, lengths],
        "blend": ["--data-path", "1", prefix, "3", prefix, *split, lengths],
        "mock": ["--mock-data", *split, "--reset-attention-mask"],
        "several": [*several, lengths],
        "one document": ["--data-path", prefix, *split, "--reset-position-ids"],
    }
    (found,) = world.run(samples_of, {name: [*common, *flags] for name, flags in cases.items()})
    assert all(starts is None for dataset in found.pop("one document") for _, starts, _ in dataset)
    assert {name: len(datasets) for name, datasets in found.items()} == dict.fromkeys(found, 3)
    for name, datasets in found.items():
        for dataset in datasets:
            for tokens, starts, mask in dataset:
                assert all(mask), name
                expected = [0]
                for position, before in enumerate(tokens[:-1], start=1):
                    expected.append(position if before == END_OF_DOCUMENT else expected[-1])
                assert starts == expected, name
        assert any(max(starts) for dataset in datasets for _, starts, _ in dataset), name


def test_first_tokens_of_documents_are_not_trained_on(world, base_flags, packed_data, tmp_path):
    """One target for each document of a sample but its first, told by lengths or last tokens; of pieces cut
    at the sequence length the last target, which begins the next piece and has no EOD before it.
    """
    at = base_flags.index("--data-path")
    common = [*base_flags[:at], *base_flags[at + 4 :], "--data-cache-path", str(tmp_path / "cache")]
    common += ["--mask-document-starts", "--split", "80,10,10", "--data-path"]
    length = int(base_flags[base_flags.index("--seq-length") + 1])
    write_documents(tmp_path / "pieces", [np.arange(1, length + 1) % 90 + 1] * 200)
    prefix = packed_data[packed_data.index("--data-path") + 1]
    by_length = "--dataloader-inter-document-masking"
    cases = {
        "last tokens": [prefix, "--reset-attention-mask"],
        "lengths": [prefix, by_length],
        "pieces": [str(tmp_path / "pieces"), by_length],
    }
    (found,) = world.run(samples_of, {name: [*common, *flags] for name, flags in cases.items()})
    for sample in (sample for dataset in found.pop("pieces") for sample in dataset):
        assert sample[2] == [1.0] * (length - 1) + [0.0]
    masked = 0
    for tokens, _, mask in (sample for name in found for dataset in found[name] for sample in dataset):
        assert mask == [float(token != END_OF_DOCUMENT) for token in tokens]
        masked += tokens[-1] == END_OF_DOCUMENT
    assert masked  # a last target, too

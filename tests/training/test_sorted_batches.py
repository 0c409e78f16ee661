"""Samples of a batch by the squared lengths of their documents, read from the samples themselves."""

import pytest

from tests.training.test_e2_llm import numbers, train

MASKING = "--dataloader-inter-document-masking"


def costs_and_orders(flags: list[str], batch: int) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Costs by the samples' document starts; the tokens of all samples as they were, and sorted."""
    from tests.training.test_dataset import built

    with built(flags) as (dataset, *_):
        from phd.training.sorted_batches import SortedBatches, squared_lengths

        ours, plain = SortedBatches(dataset, batch), [dataset[place] for place in range(len(dataset))]
        costs = []
        for place, sample in enumerate(plain):
            starts = sample["document_starts"].tolist()
            lengths = [starts.count(start) for start in {*starts}]
            costs.append(sum(length**2 for length in lengths))
            assert squared_lengths(dataset, place) == costs[-1]
        assert len(ours) == len(dataset)
        backwards = [ours[place]["tokens"].tolist() for place in reversed(range(len(dataset)))]
    return costs, [sample["tokens"].tolist() for sample in plain], backwards[::-1]


@pytest.mark.parametrize("blend", [False, True])
def test_batches_are_sorted(world, base_flags, packed_data, data, tmp_path, blend):
    flags = [*base_flags, *packed_data, MASKING, "--split", "80,10,10", "--train-iters", "11"]
    if blend:
        paths = [each[each.index("--data-path") + 1] for each in (packed_data, data)]
        flags += ["--data-path", "0.5", paths[0], "0.5", paths[1]]
    (answer,) = world.run(costs_and_orders, [*flags, "--data-cache-path", str(tmp_path)], 6)
    costs, plain, ours = answer
    assert len(plain) % 6 and len({*costs}) > 5  # a last batch that is not whole
    for first in range(0, len(plain), 6):
        batch = range(first, min(first + 6, len(plain)))
        wanted = sorted(batch, key=lambda place: (-costs[place], -place))
        assert [ours[place] for place in batch] == [plain[place] for place in wanted]


def test_an_iteration_trains_on_the_same(world, base_flags, packed_data, tmp_path):
    """With another order of sums: also on two ranks, and after a resume in the middle."""
    flags = [*base_flags, *packed_data, MASKING, "--global-batch-size", "8", "--micro-batch-size", "2"]
    plain = train(world, flags, tmp_path / "plain", "")
    halves = "--save-interval 2 --sort-batch-by-documents"
    train(world, flags, tmp_path / "ours", f"{halves} --exit-interval 2", ranks=2)
    ours = train(world, flags, tmp_path / "ours", halves)
    for found, wanted in zip(*(numbers(x, "lm loss", "grad-norm") for x in (ours, plain)), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    assert ours != plain

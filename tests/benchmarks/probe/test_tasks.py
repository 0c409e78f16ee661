"""Labels against the definitions, written as loops over one sample; what a batch is made from."""

from itertools import combinations

import pytest
import torch

from benchmarks.probe.tasks import guess, p_hop, prefix_match3, windowed_parity


def parity(bits, window):
    return [sum(bits[max(0, i - window + 1) : i + 1]) % 2 for i in range(len(bits))]


def match3(numbers, modulus):
    return [
        int(any((numbers[i] + a + b) % modulus == 0 for a, b in combinations(numbers[:i], 2)))
        for i in range(len(numbers))
    ]


def hop(letters, hops, nowhere):
    """By the paper's definition, which counts from 1: find(0) = 0, else the largest j <= i whose predecessor
    has the letter at i, or 0.
    """

    def find(i):
        return max((j for j in range(2, i + 1) if letters[j - 2] == letters[i - 1]), default=0) if i else 0

    labels = []
    for i in range(1, len(letters) + 1):
        for _ in range(hops):
            i = find(i)
        labels.append(letters[i - 1] if i else nowhere)
    return labels


CASES = {
    "parity": (windowed_parity(20, 3), lambda tokens: parity(tokens, 3)),
    "parity of one bit": (windowed_parity(5, 1), lambda tokens: tokens),
    "parity of all bits": (windowed_parity(6, 6), lambda tokens: parity(tokens, 6)),
    "match3": (prefix_match3(9, 12), lambda tokens: match3(tokens, 12)),
    "match3 without a choice": (prefix_match3(12, 3), lambda tokens: match3(tokens, 3)),
    "one hop": (p_hop(20, 1, 4), lambda tokens: hop(tokens, 1, 4)),
    "three hops": (p_hop(20, 3, 3), lambda tokens: hop(tokens, 3, 3)),
}


@pytest.mark.parametrize(("task", "labels_of"), CASES.values(), ids=CASES)
def test_labels_are_the_definition_s(task, labels_of):
    tokens, labels = task.batch(200, 1, 0)
    assert tokens[:, 0].tolist() == [task.vocabulary - 1] * 200
    tokens = tokens[:, 1:]
    assert tokens.shape == labels.shape == (200, task.length)
    assert tokens.dtype == labels.dtype == torch.int64
    assert min(tokens.min(), labels.min()) >= 0 and max(tokens.max(), labels.max()) < task.symbols
    assert labels.tolist() == [labels_of(sample) for sample in tokens.tolist()]


def test_hops_by_hand():
    """a b c a b: the second a hops to b, which was new, the second b to c. In a a the second stays."""
    assert hop([0, 1, 2, 0, 1], 1, 9) == [9, 9, 9, 1, 2]
    assert hop([0, 1, 2, 0, 1], 2, 9) == [9, 9, 9, 9, 9]
    assert hop([0, 1, 0, 1, 0], 2, 9) == [9, 9, 9, 1, 0]
    assert hop([0, 0], 2, 9) == [9, 0]


def test_parity_by_hand():
    assert parity([1, 1, 0, 1, 1], 2) == [1, 0, 1, 1, 0]


def test_match3_labels_are_even():
    """From the third position on; the bound is six standard deviations. The first two have 0."""
    labels = prefix_match3(8, 16).batch(4000, 1, 0)[1].double().mean(0)
    assert labels[:2].tolist() == [0, 0]
    assert ((labels[2:] - 0.5).abs() < 0.05).all(), labels


def test_match3_numbers_are_even():
    """The numbers themselves tell nothing: each is as frequent as any, within five standard deviations."""
    tokens = prefix_match3(8, 16).batch(4000, 1, 0)[0]
    first = torch.bincount(tokens[:, 1], minlength=16) / 4000
    assert ((first - 1 / 16).abs() < 5 * (15 / 16**2 / 4000) ** 0.5).all(), first


@pytest.mark.parametrize("task", [windowed_parity(16, 4), prefix_match3(8, 16), p_hop(16, 2, 4)])
def test_a_batch_follows_from_seed_and_step(task):
    def equal(one, other):
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    torch.manual_seed(5)
    batch = task.batch(4, 3, 7)
    state = torch.random.get_rng_state()
    assert equal(batch, task.batch(4, 3, 7)) and torch.equal(state, torch.random.get_rng_state())
    for seed, step in ((7, 3), (4, 7), (3, 8), (3 + 1024, 7), (3, 7 + (1 << 12))):
        assert not equal(batch, task.batch(4, seed, step)), (seed, step)


def test_a_guess_knows_the_position_alone():
    assert guess(torch.tensor([[0, 2], [0, 3], [1, 3], [0, 4]])) == (3 + 2) / 8

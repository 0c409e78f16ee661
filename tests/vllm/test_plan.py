"""The plan of a step against the one rule: which hidden keys each hidden copy sees, through any schedule."""

import random

import pytest
import torch

from phd.rules.copies import Copies
from phd.rules.rule import AttentionRule
from phd.vllm.plan import dummy_plan, make_plan

REQUESTS = 4


def random_schedule(seed: int) -> None:
    """Run requests in steps of random lengths, with preemptions; every step must see what the rule says."""
    draw = random.Random(seed)
    window = draw.choice([1, 1, 2, 3, 5, 8, 16])
    chunk = None if window == 1 else window * draw.choice([1, 2, 3])
    copies = Copies(draw.randint(2, 4), window, chunk)
    ring = 0 if copies.window == 1 else copies.window - 1 + draw.randint(0, 6)
    lengths = [draw.randint(1, 48) for _ in range(REQUESTS)]
    done = [0] * REQUESTS
    held = torch.full((REQUESTS, ring), -1)  # the position whose keys a slot holds
    while done != lengths:
        news = [draw.randint(0, min(lengths[i] - done[i], 24)) for i in range(REQUESTS)]
        ends = [d + new for d, new in zip(done, news, strict=True)]
        starts = torch.tensor([0, *news]).cumsum(0)
        all_columns = draw.random() < 0.2
        plan = make_plan(starts, torch.tensor(ends), copies, all_columns=all_columns)
        for i, (begin, end) in enumerate(zip(done, ends, strict=True)):
            own = slice(plan.starts[i], plan.starts[i + 1])
            positions = plan.positions[own].tolist()
            first = begin if all_columns else max(begin, end - (end - 1) % (copies.chunk or 1) - 1)
            assert positions == [*range(first, end)]
            assert plan.tokens[own].tolist() == [int(starts[i]) + p - begin for p in positions]
        check_keys(copies, plan, held, ring)
        if ring:
            columns, slots = plan.writes(ring)
            rows = plan.requests[columns] * ring + slots
            assert len(rows.unique()) == len(rows)
            held.view(-1)[rows] = plan.positions[columns]
        done = ends
        for i in range(REQUESTS):
            if draw.random() < 0.1:  # preempted: it starts again behind a prefix hit
                done[i] = draw.randrange(0, done[i] + 1, copies.chunk or 1)
                held[i] = -1


def check_keys(copies: Copies, plan, held: torch.Tensor, ring: int) -> None:
    hidden, rule = copies.hidden, AttentionRule(copies)
    columns = len(plan.positions)
    keys, visible = plan.keys(ring), plan.visible(hidden)
    position = torch.cat([held.flatten(), plan.positions])[keys]  # [R, W]
    request = torch.cat([torch.arange(REQUESTS).repeat_interleave(ring), plan.requests])[keys]
    assert (request[plan.seen] == plan.requests[:, None].expand_as(request)[plan.seen]).all()
    found = torch.zeros(columns, hidden, 48, hidden, dtype=torch.int)
    column, copy, back, other = visible.nonzero(as_tuple=True)
    found.index_put_(
        (column, copy, position[column, back], other),
        torch.ones(len(column), dtype=torch.int),
        accumulate=True,
    )
    numbers = torch.arange(1, copies.count)
    expected = rule.sees(
        plan.positions[:, None, None, None], numbers[:, None, None], torch.arange(48)[:, None], numbers
    )
    torch.testing.assert_close(found, expected.int(), rtol=0, atol=0)


@pytest.mark.parametrize("part", range(4))
def test_random_schedules_see_what_the_rule_says(part):
    for seed in range(50 * part, 50 * part + 50):
        random_schedule(seed)


def test_no_column_without_tokens():
    """Padding requests have no new token, and may claim any length."""
    plan = make_plan(torch.tensor([0, 3, 3]), torch.tensor([9, 0]), Copies(3, 4, 8))
    assert (plan.counts, plan.positions.tolist()) == ([1, 0], [8])


def test_measured_with_the_most_columns_that_requests_need():
    assert len(dummy_plan(100, 3, Copies(2, 4, 8)).positions) == 24
    assert dummy_plan(5, 3, Copies(2)).tokens.tolist() == [2, 3, 4]

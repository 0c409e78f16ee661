"""Ranks with slices of the sequence give one process's outputs and gradients, and send what they must."""

import pytest
import torch
import torch.distributed as dist

from phd.attention.context_parallel import COMM_TYPES, ContextParallel
from phd.attention.slices import rank_segments
from phd.rules.keys import Blocks, ByHead, Full, Groups
from tests.attention.calls import attend, rule_of
from tests.attention.test_attention import random_inputs, run, starts_of

LENGTH = 64
DOCUMENTS = starts_of((1, 30, 2, 19, 12), (64,))
# name -> (rule, arguments): borders inside windows, on chunks, and without chunks
CASES = {
    "vanilla": (rule_of(1), {}),
    "PHD-2": (rule_of(2), {}),
    "CSWA-2-divides": (rule_of(2, 4, 8), {}),
    "CSWA-3-crosses": (rule_of(3, 5, 12), {}),
    "SWA-3": (rule_of(3, 6), {}),
    "SWA-3-last": (rule_of(3, 6), {"last_copy_only": True}),
    "sink": (rule_of(1, keys=Blocks(4, 1, 2)), {}),
    "strided-CSWA-2": (rule_of(2, 4, 8, Blocks(4, 0, 2, stride=3)), {}),
    "odd-blocks-SWA-3-last": (rule_of(3, 6, keys=Blocks(5, 1, 2, stride=4)), {"last_copy_only": True}),
    "shifted-groups-CSWA-2": (rule_of(2, 4, 8, Groups(12, 6)), {}),
    "full-heads-among-streaming": (
        rule_of(2, 4, 8, ByHead(((1, Blocks(1, 1, 9)), (1, Full()), (2, Blocks(4, 1, 2))))),
        {},
    ),
    "heads-shifted-by-half": (rule_of(1, keys=ByHead(((2, Groups(16)), (2, Groups(16, 8))))), {}),
    "naive-2": (rule_of("naive-2"), {}),
    "naive-3-last": (rule_of("naive-3"), {"last_copy_only": True}),
}


def on_ranks(rank_job, *args):
    """What ``rank_job(rank, size, *args)`` returns, in a process group of its own."""
    import os

    dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    try:
        return rank_job(*args)
    finally:
        dist.destroy_process_group()


def rank_results(comm_type, dtype, cases):
    """Outputs and gradients of these cases on this rank's rows, packed and not."""
    parallel = ContextParallel(dist.group.WORLD, comm_type)
    segments = rank_segments(LENGTH, parallel.rank, parallel.size)
    results = {}
    for name in cases:
        rule, arguments = CASES[name]
        for documents in (None, DOCUMENTS):
            rows = [
                torch.cat([x[part.begin : part.begin + part.length] for part in segments])
                for x in case_inputs(name, dtype)
            ]
            results[name, documents is None] = run(
                rows, rule, document_starts=documents, parallel=parallel, **arguments
            )
    return results


def case_inputs(name, dtype):
    rule, arguments = CASES[name]
    copies = rule.copies.count
    *inputs, grad = random_inputs(LENGTH, 2 * copies, heads=8, groups=4, dtype=dtype)
    return [*inputs, grad[:, ::copies] if arguments else grad]


@pytest.mark.parametrize(("ranks", "comm_type"), [*((4, name) for name in COMM_TYPES), (2, "p2p")])
def test_ranks_equal_one_process(world, ranks, comm_type):
    """With two ranks, each has a single neighbour."""
    by_rank = world.run(on_ranks, rank_results, comm_type, torch.float64, [*CASES], ranks=ranks)
    for (name, one_document), _ in by_rank[0].items():
        rule, arguments = CASES[name]
        inputs = case_inputs(name, torch.float64)
        expected = run(inputs, rule, document_starts=None if one_document else DOCUMENTS, **arguments)
        for rank, results in enumerate(by_rank):
            for result, whole in zip(results[name, one_document], expected, strict=True):
                mine = [whole[r.begin : r.begin + r.length] for r in rank_segments(LENGTH, rank, ranks)]
                torch.testing.assert_close(result, torch.cat(mine), rtol=1e-11, atol=1e-12)


def test_bf16_rounds_no_more_than_one_process(world):
    """Partial results are added in fp32: errors against fp64 stay those of a single process."""
    case = "CSWA-3-crosses"
    by_rank = world.run(on_ranks, rank_results, "p2p", torch.bfloat16, [case], ranks=4)
    rule, _ = CASES[case]
    inputs = case_inputs(case, torch.bfloat16)
    expected = run(inputs, rule, dtype=torch.float64)
    serial = run(inputs, rule)
    for index, exact in enumerate(expected):
        serial_error = (serial[index].double() - exact).abs().mean()
        errors = []
        for rank, results in enumerate(by_rank):
            mine = torch.cat([exact[r.begin : r.begin + r.length] for r in rank_segments(LENGTH, rank, 4)])
            errors.append((results[case, True][index].double() - mine).abs().mean())
        assert sum(errors) / 4 < 1.5 * serial_error


def sent_elements(comm_type, case):
    """Elements that this rank sends to other ranks in forward, and in forward and backward together."""
    parallel = ContextParallel(dist.group.WORLD, comm_type)
    sent = 0

    def count(name, elements):
        original = getattr(dist, name)

        def counted(*args, **kwargs):
            nonlocal sent
            sent += elements(*args)
            return original(*args, **kwargs)

        setattr(dist, name, counted)
        return name, original

    others = parallel.size - 1
    restore = [
        count("batch_isend_irecv", lambda ops: sum(op.tensor.numel() for op in ops if op.op is dist.isend)),
        count("all_gather_into_tensor", lambda out, block: others * block.numel()),
        count("reduce_scatter_tensor", lambda out, parts: others * out.numel()),
        count(
            "all_to_all_single",  # equal parts, of which one stays; or the rows for each rank
            lambda out, parts, *sizes: parts.numel() if sizes else others * parts.numel() // parallel.size,
        ),
    ]
    try:
        *inputs, grad = (x[: LENGTH // parallel.size] for x in case_inputs(case, torch.float32))
        inputs = [x.clone().requires_grad_() for x in inputs]
        out = attend(*inputs, CASES[case][0], parallel=parallel)
        forward = sent
        torch.autograd.grad(out, inputs, grad)
    finally:
        for name, original in restore:
            setattr(dist, name, original)
    return forward, sent


@pytest.mark.parametrize(
    "case",
    ["vanilla", "CSWA-2-divides", "SWA-3", "naive-2", "sink", "strided-CSWA-2", "heads-shifted-by-half"],
)
@pytest.mark.parametrize("comm_type", COMM_TYPES)
def test_communication_volume(world, comm_type, case):
    """The originals' keys and values and the windows' halos; a2a moves every copy, naive repetition too."""
    ranks, samples = 4, 2
    rule, _ = CASES[case]
    counted = world.run(on_ranks, sent_elements, comm_type, case, ranks=ranks)
    forward, backward = traffic(rule, ranks, comm_type, heads=8, groups=4, dim=8)
    assert sum(forward for forward, _ in counted) == samples * forward
    assert sum(both for _, both in counted) == samples * (forward + backward)


def traffic(rule, ranks, comm_type, heads, groups, dim):
    """Elements that all ranks together send for one sample, (forward, backward).

    p2p and all_gather: every rank's original keys and values reach all others, and in backward once more,
    with their gradients on the way home; hidden keys and values of the window - 1 positions before a slice
    cross the border to it, unless the chunks divide the slices. Sparse layers send the keys that queries
    elsewhere keep.
    """
    copies = rule.copies
    if comm_type == "a2a":
        elements = copies.count * LENGTH * 2 * (heads + groups) * dim * (ranks - 1) // ranks
        return elements, elements
    rows = LENGTH // (2 * ranks)
    exchanged = (copies.count if copies.cached else 1) * LENGTH * (ranks - 1)
    if rule.keys != Full():
        exchanged = 0
        for rank in range(ranks):
            held = {p for p in range(LENGTH) if p // rows in (rank, 2 * ranks - 1 - rank)}
            for head in range(groups):
                seen = {
                    key for query in held for key in range(query + 1) if rule.keys.keeps(query, key, head)
                }
                exchanged += len(seen - held) / groups
    halo = 0
    if copies.chunk is None or rows % copies.chunk:
        # of the 2P - 1 borders one lies within a rank
        halo = 2 * (ranks - 1) * (copies.window - 1) * copies.hidden
    position = 2 * groups * dim
    return (exchanged + halo) * position, (2 * exchanged + halo) * position


def test_refusals(world):
    messages = world.run(on_ranks, refusal_messages, ranks=2)
    for at_once, heads, reference in messages:
        assert "comm_type must be one of p2p, all_gather, a2a" in at_once
        assert "3 heads on 2 ranks do not divide" in heads
        assert "the reference does not run context-parallel" in reference


def refusal_messages():
    parallel = ContextParallel(dist.group.WORLD, "a2a")
    rows = torch.zeros(8, 2, 3, 4)
    calls = [
        lambda: ContextParallel(dist.group.WORLD, "a2a+p2p"),
        lambda: attend(rows, rows, rows, rule_of(2, 4), parallel=parallel),
        lambda: attend(rows, rows, rows, rule_of(2, 4), parallel=parallel, backend="reference"),
    ]
    messages = []
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        messages.append(str(error.value))
    return messages

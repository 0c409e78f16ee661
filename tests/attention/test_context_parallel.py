"""Ranks with slices of the sequence give one process's outputs and gradients, and send what they must."""

import pytest
import torch
import torch.distributed as dist

from phd.attention import naive_attention, phd_attention
from phd.attention.context_parallel import COMM_TYPES, ContextParallel
from phd.attention.layout import rank_runs
from phd.attention.pattern import Pattern
from tests.attention.test_attention import random_inputs, run, starts_of

LENGTH = 64
DOCUMENTS = starts_of((1, 30, 2, 19, 12), (64,))
# name -> (function, arguments): borders inside windows, on chunks, and without chunks
CASES = {
    "vanilla": (phd_attention, {"copies": 1, "window": 1}),
    "PHD-2": (phd_attention, {"copies": 2, "window": 1}),
    "CSWA-2-divides": (phd_attention, {"copies": 2, "window": 4, "chunk": 8}),
    "CSWA-3-crosses": (phd_attention, {"copies": 3, "window": 5, "chunk": 12}),
    "SWA-3": (phd_attention, {"copies": 3, "window": 6}),
    "SWA-3-last": (phd_attention, {"copies": 3, "window": 6, "last_copy_only": True}),
    "sink": (phd_attention, {"copies": 1, "window": 1, "pattern": Pattern(4, 1, 2)}),
    "strided-CSWA-2": (
        phd_attention,
        {"copies": 2, "window": 4, "chunk": 8, "pattern": Pattern(4, 0, 2, stride=3)},
    ),
    "odd-blocks-SWA-3-last": (
        phd_attention,
        {"copies": 3, "window": 6, "last_copy_only": True, "pattern": Pattern(5, 1, 2, stride=4)},
    ),
    "naive-2": (naive_attention, {"copies": 2}),
    "naive-3-last": (naive_attention, {"copies": 3, "last_copy_only": True}),
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
    runs = rank_runs(LENGTH, parallel.rank, parallel.size)
    results = {}
    for name in cases:
        function, arguments = CASES[name]
        for documents in (None, DOCUMENTS):
            rows = [
                torch.cat([x[run.begin : run.begin + run.length] for run in runs])
                for x in case_inputs(arguments, dtype)
            ]
            results[name, documents is None] = run(
                function, rows, document_starts=documents, context_parallel=parallel, **arguments
            )
    return results


def case_inputs(arguments, dtype):
    *inputs, grad = random_inputs(LENGTH, 2 * arguments["copies"], heads=8, groups=4, dtype=dtype)
    return [*inputs, grad[:, :: arguments["copies"]] if "last_copy_only" in arguments else grad]


@pytest.mark.parametrize(("ranks", "comm_type"), [*((4, name) for name in COMM_TYPES), (2, "p2p")])
def test_ranks_equal_one_process(world, ranks, comm_type):
    """Of two, each has one neighbour alone."""
    by_rank = world.run(on_ranks, rank_results, comm_type, torch.float64, [*CASES], ranks=ranks)
    for (name, one_document), _ in by_rank[0].items():
        function, arguments = CASES[name]
        inputs = case_inputs(arguments, torch.float64)
        expected = run(function, inputs, document_starts=None if one_document else DOCUMENTS, **arguments)
        for rank, results in enumerate(by_rank):
            for result, whole in zip(results[name, one_document], expected, strict=True):
                mine = [whole[r.begin : r.begin + r.length] for r in rank_runs(LENGTH, rank, ranks)]
                torch.testing.assert_close(result, torch.cat(mine), rtol=1e-11, atol=1e-12)


def test_bf16_rounds_no_more_than_one_process(world):
    """Partial results are added in fp32: errors against fp64 stay those of a single process."""
    case = "CSWA-3-crosses"
    by_rank = world.run(on_ranks, rank_results, "p2p", torch.bfloat16, [case], ranks=4)
    function, arguments = CASES[case]
    inputs = case_inputs(arguments, torch.bfloat16)
    expected = run(function, inputs, dtype=torch.float64, **arguments)
    serial = run(function, inputs, **arguments)
    for index, exact in enumerate(expected):
        serial_error = (serial[index].double() - exact).abs().mean()
        errors = []
        for rank, results in enumerate(by_rank):
            mine = torch.cat([exact[r.begin : r.begin + r.length] for r in rank_runs(LENGTH, rank, 4)])
            errors.append((results[case, True][index].double() - mine).abs().mean())
        assert sum(errors) / 4 < 1.5 * serial_error


def sent_elements(comm_type, function, arguments):
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
        *inputs, grad = (x[: LENGTH // parallel.size] for x in case_inputs(arguments, torch.float32))
        inputs = [x.clone().requires_grad_() for x in inputs]
        out = function(*inputs, context_parallel=parallel, **arguments)
        forward = sent
        torch.autograd.grad(out, inputs, grad)
    finally:
        for name, original in restore:
            setattr(dist, name, original)
    return forward, sent


@pytest.mark.parametrize("case", ["vanilla", "CSWA-2-divides", "SWA-3", "naive-2", "sink", "strided-CSWA-2"])
@pytest.mark.parametrize("comm_type", COMM_TYPES)
def test_communication_volume(world, comm_type, case):
    """The originals' keys and values and the windows' halos; a2a moves every copy, naive repetition too."""
    from phd.accounting import context_parallel_elements

    ranks, samples, heads, groups, dim = 4, 2, 8, 4, 8
    function, arguments = CASES[case]
    counted = world.run(on_ranks, sent_elements, comm_type, function, arguments, ranks=ranks)
    expected = context_parallel_elements(
        LENGTH,
        ranks=ranks,
        comm_type=comm_type,
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=dim,
        naive=function is naive_attention,
        **arguments,
    )
    assert sum(forward for forward, _ in counted) == samples * expected.forward
    assert sum(both for _, both in counted) == samples * (expected.forward + expected.backward)


def test_originals_alone_are_k_times_less():
    """What the paper's layout spares: naive repetition sends K times as much."""
    from phd.accounting import context_parallel_elements

    sizes = {"num_attention_heads": 8, "num_query_groups": 4, "kv_channels": 8}
    for comm_type in ("p2p", "all_gather"):
        phd, naive = (
            context_parallel_elements(
                4096, ranks=4, comm_type=comm_type, copies=3, window=16, chunk=32, naive=naive, **sizes
            ).forward
            for naive in (False, True)
        )
        assert naive == 3 * phd


def test_refusals(world):
    messages = world.run(on_ranks, refusal_messages, ranks=2)
    for at_once, heads, reference in messages:
        assert "comm_type must be one of p2p, all_gather, a2a" in at_once
        assert "3 heads on 2 ranks do not divide" in heads
        assert "'reference' does not run context-parallel" in reference


def refusal_messages():
    parallel = ContextParallel(dist.group.WORLD, "a2a")
    rows = torch.zeros(8, 2, 3, 4)
    calls = [
        lambda: ContextParallel(dist.group.WORLD, "a2a+p2p"),
        lambda: phd_attention(rows, rows, rows, copies=2, window=4, context_parallel=parallel),
        lambda: phd_attention(
            rows, rows, rows, copies=2, window=4, context_parallel=parallel, backend="reference"
        ),
    ]
    messages = []
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        messages.append(str(error.value))
    return messages

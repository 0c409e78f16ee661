"""Where packed documents start, on all ranks; what attention does with it is in test_context_parallel.py."""

STARTS = [[0, 0, 0, 3, 3, 5], [0, 1, 2, 2, 2, 2]]


def starts_on_this_rank(tensor_parallel: int) -> list[list[int]]:
    """Each tensor-parallel group's first rank alone has read a batch; the numbers tell groups apart."""
    from phd.megatron.documents import on_all_ranks

    # isort: split
    import torch
    from megatron.core import parallel_state

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_parallel)
    try:
        group = torch.distributed.get_rank() // tensor_parallel
        first = parallel_state.get_tensor_model_parallel_rank() == 0
        read = torch.tensor(STARTS) + 10 * group if first else None
        return on_all_ranks(read, (2, 6)).tolist()
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def test_what_the_first_rank_reads_is_on_all_ranks_of_its_group(world):
    for tensor_parallel, ranks in ((1, 1), (2, 4)):
        answers = world.run(starts_on_this_rank, tensor_parallel, ranks=ranks)
        for rank, answer in enumerate(answers):
            assert answer == [[10 * (rank // tensor_parallel) + x for x in row] for row in STARTS]

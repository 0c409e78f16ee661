"""Where packed documents start; what attention does with it is in test_context_parallel.py."""


def starts(position_ids: list[list[int]]) -> list[list[int]]:
    from phd.megatron.documents import document_starts

    # isort: split
    import torch
    from megatron.core import parallel_state

    positions = torch.tensor(position_ids)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    try:
        return document_starts(positions, (len(position_ids), len(position_ids[0]))).tolist()
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def test_a_document_starts_where_its_positions_are_zero(world):
    """Also at the end of a sample, and where a document has one token."""
    (answer,) = world.run(starts, [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]])
    assert answer == [[0, 0, 0, 3, 3, 5], [0, 1, 2, 2, 2, 2]]

"""Heads are those of the whole layer: ranks with some of them, and with slices of the sequence, give one
process's attention.
"""

import pytest

PATTERNS = {
    4: "1heads.1sink.1.1.6.3full-1heads.2groups.16.0.2groups.16.8",
    2: "1heads.1sink.1.1.6.1full-1heads.1groups.16.0.1groups.16.8",
}
"""By the key/value heads of a layer."""
HEADS, LENGTH, SIZE = 8, 32, 8
LAYOUTS = {
    "TP2": (4, 2, 1, "p2p"),
    "TP2-CP2-a2a": (4, 2, 2, "a2a"),
    "CP2-p2p": (4, 1, 2, "p2p"),
    "TP4-of-2-heads": (2, 4, 1, "p2p"),
}


def attention_on_this_rank(kv_heads: int, tensor_parallel: int, context_parallel: int, comm_type: str):
    """Whether outputs and gradients of both layers, in training and validation, are the rank's part of one
    process's.
    """
    import torch

    # isort: split
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.enums import AttnMaskType

    from phd.attention.slices import rank_segments
    from phd.megatron.core_attention import PHDCoreAttention
    from phd.megatron.transformer_config import PHDTransformerConfig
    from phd.rules.rule import AttentionRule
    from tests.attention.calls import attend

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_parallel, context_parallel_size=context_parallel
    )
    try:
        groups = ProcessGroupCollection.use_mpu_process_groups(["tp", "cp"])
        config = PHDTransformerConfig(
            num_layers=2, hidden_size=HEADS * SIZE, num_attention_heads=HEADS, num_query_groups=kv_heads,
            tensor_model_parallel_size=tensor_parallel, context_parallel_size=context_parallel,
            attention_dropout=0.0, attention_pattern=PATTERNS[kv_heads], cp_comm_type=comm_type,
        )  # fmt: skip
        torch.manual_seed(0)
        sizes = (HEADS, kv_heads, kv_heads, HEADS)
        *qkv, grad = (torch.randn(LENGTH, 2, heads, SIZE, dtype=torch.float64) for heads in sizes)
        segments = rank_segments(LENGTH, groups.cp.rank(), context_parallel)

        def mine(x):
            x = torch.cat([x[part.begin : part.begin + part.length] for part in segments])
            first = groups.tp.rank() * x.shape[2] // tensor_parallel
            return x[:, :, first : first + max(1, x.shape[2] // tensor_parallel)]

        equal = []
        for layer, keys in enumerate(config.layers(2), start=1):
            module = PHDCoreAttention(
                config, layer, AttnMaskType.causal, "self", cp_comm_type=comm_type, pg_collection=groups
            )
            for training in (True, False):
                module.train(training)
                rule = keys if training else keys.outside_training
                assert (rule == AttentionRule()) is (layer == 2 and not training)
                query, key, value = whole = [x.clone().requires_grad_() for x in qkv]
                out = attend(query, key, value, rule, backend="reference")
                expected = [out, *torch.autograd.grad(out, whole, grad)]
                parts = [mine(x).clone().requires_grad_() for x in qkv]
                result = module(*parts, None).unflatten(2, (-1, SIZE))
                gradients = torch.autograd.grad(result, parts, mine(grad))
                if tensor_parallel > kv_heads:  # ranks with one key/value head have a part of its gradient
                    expected, gradients = expected[:2], gradients[:1]
                for ours, theirs in zip([result, *gradients], expected, strict=True):
                    equal.append(torch.allclose(ours, mine(theirs), rtol=1e-10, atol=1e-12))
        return equal
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_hold_heads_of_the_whole_layer(layout, world):
    _, tensor_parallel, context_parallel, _ = LAYOUTS[layout]
    ranks = tensor_parallel * context_parallel
    for equal in world.run(attention_on_this_rank, *LAYOUTS[layout], ranks=ranks):
        assert equal and all(equal)

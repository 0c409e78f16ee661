"""What our attention does not run with (yet): start-up checks this table, docs/support.md prints it, and a
test compares the two.
"""

from argparse import Namespace

from megatron.core.fp8_utils import get_fp8_align_size
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.transformer_block import get_num_layers_to_build

from phd.attention.context_parallel import COMM_TYPES
from phd.megatron.documents import documents_masked
from phd.megatron.transformer_config import (
    PHDTransformerConfig,
    key_value_heads,
    needs_phd_attention,
    prunes_last_layer,
)
from phd.rules.variant import Variant
from phd.training.never import NEVER, TO_TRAIN, Unsupported
from phd.training.sizes import linear_rows

UNSUPPORTED = (
    Unsupported(
        "--attention-dropout above 0", lambda a: a.attention_dropout > 0, "pass --attention-dropout 0"
    ),
    Unsupported(
        "--cp-comm-type a2a+p2p, or one for each layer",
        lambda a: (
            a.context_parallel_size > 1 and (len(a.cp_comm_type) > 1 or a.cp_comm_type[0] not in COMM_TYPES)
        ),
        f"use one of {', '.join(COMM_TYPES)}",
    ),
    Unsupported(
        "--cp-comm-type a2a with key/value heads that the ranks do not divide",
        lambda a: (
            "a2a" in a.cp_comm_type
            and a.context_parallel_size > 1
            and max(key_value_heads(a) // a.tensor_model_parallel_size, 1) % a.context_parallel_size > 0
        ),
        "use p2p or all_gather",
    ),
    Unsupported(
        "--context-parallel-size with slices (--seq-length / size / 2) shorter than the window",
        lambda a: (
            a.context_parallel_size > 1
            and not a.phd_naive
            and a.phd_copies > 1
            and "a2a" not in a.cp_comm_type
            and a.seq_length // (2 * a.context_parallel_size)
            < min(a.phd_window, a.phd_chunk or a.phd_window) - 1
        ),
        "use fewer ranks or a smaller --phd-window",
    ),
    Unsupported(
        "--context-parallel-size with --phd-attention-backend reference",
        lambda a: a.context_parallel_size > 1 and a.phd_attention_backend == "reference",
        "use flash",
    ),
    Unsupported(
        "--attention-output-gate with a pruned last layer",
        lambda a: a.attention_output_gate and prunes_last_layer(a),
        "pass --no-phd-prune-last-layer",
    ),
    Unsupported(
        "--num-experts with --calculate-per-token-loss for several copies",
        lambda a: bool(a.num_experts) and a.calculate_per_token_loss and a.phd_copies > 1,
        "leave --calculate-per-token-loss out: the router's own losses would count once for each copy",
    ),
    Unsupported(
        "--experimental-attention-variant",
        lambda a: a.experimental_attention_variant is not None,
        "leave it out",
    ),  # fmt: skip
    Unsupported("--window-size (sliding-window layers)", lambda a: a.window_size is not None, "leave it out"),
    Unsupported("--softmax-type other than vanilla", lambda a: a.softmax_type != "vanilla", "use vanilla"),
    Unsupported("--apply-query-key-layer-scaling", lambda a: a.apply_query_key_layer_scaling, "leave it out"),
    Unsupported(
        "--log-max-attention-logit and --qk-clip",
        lambda a: a.log_max_attention_logit or a.qk_clip,
        "leave them out",
    ),  # fmt: skip
    Unsupported("--fp16", lambda a: a.fp16, "use --bf16"),
    Unsupported(
        "--position-embedding-type mrope", lambda a: a.position_embedding_type == "mrope", "use rope"
    ),
    Unsupported(
        "--fp8-format with rows of a linear layer that are no multiple of 16 (mxfp8: 32)",
        lambda a: (
            a.fp8 is not None and any(rows % get_fp8_align_size(a.fp8_recipe) for rows in linear_rows(a))
        ),
        "--seq-length times --micro-batch-size times --phd-copies, divided among the ranks of context and "
        "--sequence-parallel, must be one; without the copies too, or pass --no-phd-prune-last-layer",
    ),
    Unsupported("--fp4-format", lambda a: a.fp4 is not None, "use --bf16"),
    Unsupported(
        "--tp-comm-overlap with a pruned last layer",
        lambda a: a.tp_comm_overlap and prunes_last_layer(a),
        "pass --no-phd-prune-last-layer: Transformer Engine's buffers have one size",
    ),
    Unsupported(
        "--offload-modules core_attn with a pruned last layer",
        lambda a: (
            a.fine_grained_activation_offloading and "core_attn" in a.offload_modules and prunes_last_layer(a)
        ),
        "pass --no-phd-prune-last-layer: Megatron frees the whole query, and backward needs the last copy's",
    ),
    Unsupported("--use-megatron-fsdp", lambda a: a.use_megatron_fsdp, "use --use-distributed-optimizer"),
    Unsupported("--use-torch-fsdp2", lambda a: a.use_torch_fsdp2, "use --use-distributed-optimizer"),
)
"""What does not run where our attention does: K > 1, sparse layers, packed documents, context parallelism
without Transformer Engine."""


def refuse_unsupported(args: Namespace, to_train: bool = True) -> None:
    """Stop at start-up where the command line asks for what would not run, or not as asked.

    Args:
        args: Megatron's, parsed.
        to_train: whether a training follows.

    Raises:
        ValueError: names every refused flag and the remedy.
    """
    _refuse("pretrain_phd.py", (*NEVER, *TO_TRAIN) if to_train else NEVER, args)
    if runs_phd_attention(args):
        if args.phd_copies > 1:
            what = f"--phd-copies {args.phd_copies}"
        elif args.s2_groups:
            what = f"--s2-groups {args.s2_groups}"
        elif Variant.from_arguments(vars(args)).pattern.sparse:
            what = f"--attention-pattern {args.attention_pattern}"
        else:
            what = "packed documents" if documents_masked(args) else "--context-parallel-size"
        _refuse(what, UNSUPPORTED, args)


def refuse_empty_last_stage(args: Namespace, config: PHDTransformerConfig) -> None:
    """Stop at start-up where the last pipeline stage would have no layer to prune; only its ranks would find
    out, with the model built.

    Raises:
        ValueError: names the flags.
    """
    virtual_stages = config.virtual_pipeline_model_parallel_size
    if layout := config.pipeline_model_parallel_layout:
        layers = layout.layout[-1][-1].count(LayerType.decoder)
    else:
        last = None if virtual_stages is None else virtual_stages - 1
        layers = get_num_layers_to_build(config, last, config.pipeline_model_parallel_size - 1)
    if prunes_last_layer(args) and layers == 0:
        raise ValueError(
            "the last pipeline stage has no layer to prune (--pipeline-model-parallel-layout, "
            "--account-for-loss-in-pipeline-split): pass --no-phd-prune-last-layer"
        )


def runs_phd_attention(args: Namespace) -> bool:
    """``PHDTransformerConfig.phd_attention``, before there is one."""
    return args.s2_groups > 0 or needs_phd_attention(
        Variant.from_arguments(vars(args)),
        documents_masked(args),
        args.context_parallel_size,
        args.transformer_impl,
    )


def _refuse(what: str, table: tuple[Unsupported, ...], args: Namespace) -> None:
    refused = [entry for entry in table if entry.refuses(args)]
    if refused:
        given = ", ".join(f"{entry.flag} ({entry.remedy})" for entry in refused)
        raise ValueError(f"{what} does not run with {given}")

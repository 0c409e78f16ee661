"""What K > 1 does not run with (yet): start-up checks the table, the README prints it, a test holds both."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unsupported:
    """A setting that PHD refuses for K > 1."""

    flag: str
    """As typed by the user."""
    refuses: Callable[[Namespace], bool]
    """True for arguments that must not start."""
    remedy: str


UNSUPPORTED = (
    Unsupported(
        "--attention-dropout above 0", lambda a: a.attention_dropout > 0, "pass --attention-dropout 0"
    ),
    Unsupported("--context-parallel-size above 1", lambda a: a.context_parallel_size > 1, "use 1"),
    Unsupported("--reset-attention-mask", lambda a: a.reset_attention_mask, "leave it out"),
    Unsupported("--reset-position-ids", lambda a: a.reset_position_ids, "leave it out"),
    Unsupported("--num-experts (mixture of experts)", lambda a: a.num_experts is not None, "use a dense MLP"),
    Unsupported("--multi-latent-attention", lambda a: a.multi_latent_attention, "leave it out"),
    Unsupported(
        "--mtp-num-layers (multi-token prediction)", lambda a: bool(a.mtp_num_layers), "leave it out"
    ),
    Unsupported(
        "--heterogeneous-layers-config-path",
        lambda a: a.heterogeneous_layers_config_path is not None,
        "leave it out",
    ),
    Unsupported(
        "--experimental-attention-variant",
        lambda a: a.experimental_attention_variant is not None,
        "leave it out",
    ),  # fmt: skip
    Unsupported("--hybrid-layer-pattern", lambda a: a.hybrid_layer_pattern is not None, "leave it out"),
    Unsupported("--spec", lambda a: a.spec is not None, "leave it out: phd chooses the layer spec"),
    Unsupported("--window-size (sliding-window layers)", lambda a: a.window_size is not None, "leave it out"),
    Unsupported("--softmax-type other than vanilla", lambda a: a.softmax_type != "vanilla", "use vanilla"),
    Unsupported("--apply-query-key-layer-scaling", lambda a: a.apply_query_key_layer_scaling, "leave it out"),
    Unsupported(
        "--position-embedding-type yarn or mrope",
        lambda a: a.position_embedding_type in ("yarn", "mrope"),
        "use rope",
    ),  # fmt: skip
    Unsupported(
        "--log-max-attention-logit and --qk-clip",
        lambda a: a.log_max_attention_logit or a.qk_clip,
        "leave them out",
    ),  # fmt: skip
    Unsupported("--fp16", lambda a: a.fp16, "use --bf16"),
    Unsupported("--fp8-format", lambda a: a.fp8 is not None, "use --bf16"),
    Unsupported("--fp4-format", lambda a: a.fp4 is not None, "use --bf16"),
    Unsupported("--cuda-graph-impl", lambda a: a.cuda_graph_impl != "none", "use none"),
    Unsupported("--tp-comm-overlap", lambda a: a.tp_comm_overlap, "leave it out"),
    Unsupported("--use-megatron-fsdp", lambda a: a.use_megatron_fsdp, "use --use-distributed-optimizer"),
    Unsupported("--use-torch-fsdp2", lambda a: a.use_torch_fsdp2, "use --use-distributed-optimizer"),
)


NEVER = (
    Unsupported(
        "--attention-backend local",
        lambda a: a.attention_backend.name == "local",
        "leave it out: it makes Megatron overwrite the core attention of every layer",
    ),  # fmt: skip
    Unsupported("--yaml-cfg", lambda a: a.yaml_cfg is not None, "pass flags"),
    Unsupported("--sft", lambda a: a.sft, "leave it out: this program pretrains"),
    Unsupported("--fim-data", lambda a: a.fim_data, "leave it out"),
    Unsupported("--perform-rl-step", lambda a: a.perform_rl_step, "leave it out: this program pretrains"),
    Unsupported("--hybrid-context-parallel", lambda a: a.hybrid_context_parallel, "leave it out"),
    Unsupported(
        "--dataloader-inter-document-masking", lambda a: a.dataloader_inter_document_masking, "leave it out"
    ),  # fmt: skip
    Unsupported(
        "--ckpt-format other than torch_dist", lambda a: a.ckpt_format != "torch_dist", "use torch_dist"
    ),
    Unsupported("--inprocess-restart", lambda a: a.inprocess_restart, "leave it out"),
)
"""What pretrain_phd.py does not run with, K = 1 included."""


def refuse_unsupported(args: Namespace) -> None:
    """Stop at start-up where the command line asks for what would not run, or not as asked.

    Raises:
        ValueError: names every refused flag and the remedy.
    """
    _refuse("pretrain_phd.py", NEVER, args)
    if args.phd_copies > 1:
        _refuse(f"--phd-copies {args.phd_copies}", UNSUPPORTED, args)


def _refuse(what: str, table: tuple[Unsupported, ...], args: Namespace) -> None:
    refused = [entry for entry in table if entry.refuses(args)]
    if refused:
        lines = "".join(f"\n  {entry.flag}: {entry.remedy}" for entry in refused)
        raise ValueError(f"{what} does not run with:{lines}")

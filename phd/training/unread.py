"""Flags that Megatron's parser accepts and nothing here reads: those of its other programs, of what is
refused anyhow, and of its pretrain_gpt.py where this program does it otherwise. A test holds the list against
the sources.
"""

import re
from argparse import Namespace

from phd.training.flags import Flags

UNREAD = (
    (r"logits_load_\w+", "there is no distillation here"),
    (r"per_dataset_sequences_path", "the index of each data set is read instead"),
    (r"log_straggler|straggler_\w+|disable_straggler_on_startup", "nothing is measured for it here"),
    (r"encoder_num_layers", "use --num-layers"),
    (r"encoder_seq_length", "use --seq-length"),
    (r"decoder_num_layers|decoder_seq_length|relative_attention_\w+", "of encoder-decoder models"),
    (r"(?!perform_rl_step)(rl|grpo|langrl)_\w+|refit_method", "of reinforcement learning"),
    (
        r"(mamba_)?inference_(?!rng_tracker)\w+|max_tokens_to_oom|use_legacy_static_engine|flash_decode"
        r"|decode_only_cuda_graphs|enable_chunked_prefill|num_speculative_tokens|nccl_all_reduce_for_prefill"
        r"|offset_sampling_seed_by_dp_rank|moe_pad_experts_for_cuda_graph_inference|mlp_chunks_for_prefill",
        "of inference",
    ),
    (
        r"num_classes|img_[hw]|num_channels|patch_dim|(data_per_)?class(es)?_fraction|data_sharding"
        r"|head_lr_mult|vision_\w+|swin_\w+|mask_(type|factor)|iter_per_epoch|dino_\w+|sample_rate",
        "of vision and audio",
    ),
    (
        r"(ict|biencoder|bert|retriever|indexer)_\w+|titles_data_path|query_in_block_prob|use_one_sent_docs"
        r"|evidence_data_path|block_data_path|embedding_path|mask_prob|short_seq_prob|vocab_extra_ids"
        r"|output_bert_embeddings",
        "of BERT and retrieval",
    ),
    (
        r"mamba_(?!inference)\w+|use_mamba_mem_eff_path|hybrid_override_pattern|is_hybrid_model",
        "of hybrid models",
    ),
    (r"mtp_(?!num_layers)\w+", "of multi-token prediction, which does not run here"),
    (
        r"q_lora_rank|kv_lora_rank|qk_head_dim|qk_pos_emb_head_dim|v_head_dim|cache_mla_latents"
        r"|mla_down_proj_fusion",
        "of multi-latent attention, which does not run here",
    ),
    (r"fim_(?!data)\w+", "of --fim-data, which does not run here"),
    (r"sft_\w+", "of --sft, which does not run here"),
    (r"inprocess_(?!restart)\w+", "of --inprocess-restart, which does not run here"),
    (r"max_seqlen_per_dp_cp_rank", "of --hybrid-context-parallel, which does not run here"),
    (r"heterogeneous_layers_config_encoded_json", "use --heterogeneous-layers-config-path"),
    (r"checkpoint_activations", "use --recompute-granularity"),
    (r"apply_residual_connection_post_layernorm", "of BERT"),
    (r"use_flash_attn", "use --attention-backend flash"),
    (r"moe_(deepep|hybridep)_num_sms", "use --moe-flex-dispatcher-num-sms"),
    (
        r"openai_gelu|onnx_safe|exit_signal_handler_for_dataloader|dist_ckpt_save_pre_mcore_014"
        r"|enable_full_sharding_in_hsdp",
        "Megatron reads it nowhere",
    ),
)
"""Names of arguments, and why they are not read or what to pass instead."""


def why_unread(argument: str) -> str | None:
    """Why the argument is not read; None if it is."""
    return next((why for names, why in UNREAD if re.fullmatch(names, argument)), None)


def refuse_unread(args: Namespace, flags: Flags) -> None:
    """Check that every flag that the user gave is read by something.

    Args:
        args: parsed, and not changed since.
        flags: of the parser.

    Raises:
        ValueError: names the flags that nothing would read.
    """
    given = [
        f"{flags.name(argument)} ({why})"
        for argument in flags
        if flags.changed(argument, args) and (why := why_unread(argument))
    ]
    if given:
        them = "it" if len(given) == 1 else "them"
        raise ValueError(f"nothing here reads {', '.join(given)}: leave {them} out")

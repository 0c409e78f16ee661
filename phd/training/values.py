"""Values that no training can have: counts below one, NaN, empty paths. Megatron would divide by the first,
train with the second, and take the third for a flag that was not given.
"""

import math
from argparse import Namespace
from typing import Any

from phd.training.flags import Flags

AT_LEAST: dict[str, int] = dict.fromkeys(
    (
        *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
        *("kv_channels", "seq_length", "max_position_embeddings", "rotary_base", "vocab_size"),
        *("padded_vocab_size", "make_vocab_size_divisible_by", "moe_ffn_hidden_size", "moe_router_topk"),
        *("moe_router_num_groups", "linear_num_key_heads", "mup_base_hidden_size", "micro_batch_size"),
        *("global_batch_size", "eval_micro_batch_size", "eval_global_batch_size", "train_iters"),
        *("train_samples", "lr_decay_iters", "lr_decay_samples", "lr_wsd_decay_iters", "seed"),
        *("lr_wsd_decay_samples", "log_interval", "tensorboard_log_interval", "log_memory_interval"),
        *("eval_interval", "save_interval", "save_retain_interval", "save_params_interval"),
        *("save_activations_interval", "save_tokens_per_expert_interval", "save_wgrads_interval"),
        *("save_dgrads_interval", "check_weight_hash_across_dp_replicas_interval"),
        *("gpu_sniff_test_interval", "adlr_autoresume_interval", "tensor_model_parallel_size"),
        *("pipeline_model_parallel_size", "context_parallel_size", "expert_model_parallel_size"),
        *("expert_tensor_parallel_size", "num_distributed_optimizer_instances"),
        *("num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank"),
        *("microbatch_group_size_per_vp_stage", "recompute_num_layers", "num_dataset_builder_threads"),
        *("distributed_timeout_minutes", "sample_tokens", "rope_context", "lora_alpha"),
    ),
    1,
) | dict.fromkeys(
    (
        # 0 turns these off
        *("exit_interval", "non_persistent_save_interval", "train_sync_interval", "manual_gc_interval"),
        *("error_injection_rate", "num_experts", "eval_iters", "exit_duration_in_mins", "num_workers"),
        *("lr", "min_lr", "lr_warmup_init", "lr_warmup_iters", "lr_warmup_samples", "weight_decay"),
        *("start_weight_decay", "end_weight_decay", "clip_grad", "adam_eps", "wgrad_deferral_limit"),
        *("rope_max_scale", "rope_still_tokens", "lora_rank", "s2_groups"),
    ),
    0,
)
"""The least value of arguments that are numbers."""

SHARES = (
    *("attention_dropout", "hidden_dropout", "adam_beta1", "adam_beta2", "sgd_momentum"),
    "lr_warmup_fraction",
)
"""From 0 to below 1."""


def refuse_values(args: Namespace, flags: Flags) -> None:
    """Check the values of flags, each for itself.

    Args:
        args: parsed; sizes that a checkpoint is to tell are None.
        flags: of the parser.

    Raises:
        ValueError: names every flag whose value cannot be meant, and what it could be.
    """
    wrong = [
        f"{flags.shown(argument, args)} {problem}"
        for argument in flags
        if (problem := _problem(argument, getattr(args, argument, None), flags.default(argument)))
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def _problem(argument: str, value: Any, default: Any) -> str | None:
    if value == "" != default:
        return "is empty, as an unset variable is: give it a value or leave it out"
    if argument.endswith("data_path") and isinstance(value, list) and "" in value:
        return "holds an empty path, as an unset variable is: leave that out"
    if isinstance(value, float) and math.isnan(value):
        return "is not a number"
    least = AT_LEAST.get(argument)
    if least is not None and isinstance(value, (int, float)) and value < least:
        return f"must be at least {least}"
    if argument in SHARES and value is not None and not 0 <= value < 1:
        return "must be at least 0 and less than 1"
    return None

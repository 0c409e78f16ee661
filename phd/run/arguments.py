"""Which arguments of pretrain_phd.py change what is learned, for everything that compares two trainings.

An argument wrongly refused costs the user a flag; one wrongly ignored costs a wrong conclusion. So only
those that cannot change what is learned, beyond rounding, are ignored here.
"""

from collections.abc import Mapping
from typing import Any

PREFIXES = (
    # logging
    *(
        "log_",
        "logging_",
        "tensorboard_",
        "timing_",
        "wandb_",
        "one_logger_",
        "app_tag_run_",
        "moe_routing_trace_",
    ),
    # checkpoints, profiles, and when to stop; a run that stopped early is marked as unfinished anyway
    *("save_", "ckpt_", "async_", "dist_ckpt_", "non_persistent_", "replication", "exit_", "adlr_autoresume"),
    *(
        "profile",
        "pytorch_profiler_",
        "flight_recorder_",
        "straggler_",
        "inprocess_",
        "ft_",
        "fault_injector_",
    ),
    # communication between ranks
    *("master", "distributed_", "overlap_", "tp_comm_", "nccl_", "use_gloo_", "fake_process_group"),
    # recomputation and offloading
    *("recompute_", "fine_grained_", "cpu_offloading", "manual_gc"),
    # progress of this process
    *("consumed_", "skipped_", "curr_", "do_", "num_floating_point_operations"),
    # what happens after training
    "inference_",
    *("moe_hybridep_", "moe_ncclep_", "moe_paged_stash"),
)
"""Arguments that begin so cannot change what is learned."""

IGNORED = {
    "paths of what is written, and of what is built from arguments that are compared; load is in STARTS": (
        "run_dir save data_cache_path keep_last_checkpoints config_logger_dir "
        "sample_prompts sample_tokens "
        "memory_snapshot_path dump_param_to_param_group_map object_storage_cache_path "
        "per_dataset_sequences_path yaml_cfg"
    ),
    "how a checkpoint is written and found again": (
        "auto_detect_ckpt_format use_dist_ckpt use_persistent_ckpt_worker stream_ckpt_dequant "
        "distrib_optim_fully_reshardable_mem_efficient use_checkpoint_args use_mp_args_from_checkpoint_args "
        "use_tokenizer_model_from_checkpoint_args verify_integrity override_phd_variant"
    ),
    "machines and ranks": (
        "rank world_size local_rank lazy_mpu_init disable_straggler_on_startup enable_msc enable_one_logger "
        "enable_ft_package calc_ft_timeouts run_workload_inspector_server"
    ),
    "layout of the work over ranks": (
        "tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size "
        "transformer_pipeline_model_parallel_size context_parallel_size hierarchical_context_parallel_sizes "
        "data_parallel_size expert_model_parallel_size expert_tensor_parallel_size sequence_parallel "
        "num_layers_per_virtual_pipeline_stage num_virtual_stages_per_pipeline_rank variable_seq_lengths "
        "decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers pipeline_model_parallel_layout "
        "tensor_parallel_num_weight_shards expert_tensor_parallel_num_weight_shards gtp_weight_remat_size "
        "expert_gtp_weight_remat_size max_seqlen_per_dp_cp_rank "
        "microbatch_group_size_per_vp_stage account_for_embedding_in_pipeline_split "
        "account_for_loss_in_pipeline_split pipeline_model_parallel_comm_backend cp_comm_type "
        "micro_batch_size eval_micro_batch_size use_distributed_optimizer "
        "use_layer_wise_distributed_optimizer use_layer_wise_param_layout "
        "num_distributed_optimizer_instances data_parallel_sharding_strategy outer_dp_sharding_strategy "
        "ddp_bucket_size ddp_num_buckets ddp_pad_buckets_for_high_nccl_busbw align_grad_reduce "
        "align_param_gather use_ring_exchange_p2p use_tp_pp_dp_mapping defer_embedding_wgrad_compute "
        "wgrad_deferral_limit delay_wgrad_compute create_all_gather_group high_priority_stream_groups "
        "use_sharp sharp_enabled_group distribute_saved_activations activation_offload_fraction "
        "offload_modules optimizer_cpu_offload optimizer_offload_fraction pin_cpu_grads pin_cpu_params "
        "use_torch_optimizer_for_cpu_offload min_offloaded_tensor_size delta_offload_bytes_across_pp_ranks "
        "delay_offload_until_cuda_graph ddp_average_in_collective gradient_reduce_div_fusion "
        "suggested_communication_unit_size disable_symmetric_registration symmetric_ar_type "
        "high_priority_a2a_comm_stream ep_overlap_early_attn_memory_release batch_p2p_comm "
        "clone_scatter_output_in_embedding mlp_chunks_for_training keep_fp8_transpose_cache "
        "reuse_grad_buf_for_mxfp8_param_ag fsdp_double_buffer fsdp_manual_registration "
        "fsdp_db_use_persist_buf_on_alloc_fail megatron_fsdp_max_pool_double_buffer "
        "megatron_fsdp_enable_fine_grained_param_gather"
    ),
    "how tokens get to their experts": (
        "moe_token_dispatcher_type moe_flex_dispatcher_backend moe_flex_dispatcher_num_sms moe_enable_deepep "
        "moe_deepep_num_sms moe_shared_expert_overlap moe_layer_recompute moe_per_layer_logging "
        "moe_permute_fusion moe_permute_fusion_into_hybridep moe_router_fusion moe_grouped_gemm"
    ),
    "the same computation by another kernel, in the same precision": (
        "apply_rope_fusion bias_dropout_fusion bias_gelu_fusion bias_swiglu_fusion masked_softmax_fusion "
        "gradient_accumulation_fusion no_persist_layer_norm disable_jit_fuser cross_entropy_loss_fusion "
        "cross_entropy_fusion_impl cuda_graph_impl cuda_graph_modules cuda_graph_warmup_steps "
        "enable_cuda_graph external_cuda_graph optimizer_cuda_graph attention_backend"
    ),
    "PHD runs never build the mask: the rule is the mask": "create_attention_mask_in_dataloader",
    "how the same samples are fetched": (
        "num_workers num_dataset_builder_threads mmap_bin_files dataloader_fast_cache_load "
        "dataloader_defer_npy_index_mmap"
    ),
    "checks beside the training": (
        "barrier_with_L1_time check_for_large_grads check_for_nan_in_loss_and_grad check_for_spiky_loss "
        "check_weight_hash_across_dp_replicas_interval train_sync_interval rerun_mode "
        "gpu_sniff_test_interval result_rejected_tracker_filename empty_unused_memory_level "
        "record_memory_history record_shapes nvtx_ranges use_pytorch_profiler"
    ),
    "what start-up has written into attention_pattern": "full_heads full_heads_share",
    "what older code recorded beside the arguments, and follows from them": "run_folder phd_documents",
    "counters and traces of one start": "iteration start_time _is_global_batch_size_explicitly_specified",
}
"""Why: which other arguments cannot change what is learned, beyond rounding and the order of sums."""

NAMES = frozenset(name for names in IGNORED.values() for name in names.split())

STARTS = frozenset({"load", "ckpt_step"})
"""Where a run continues: irrelevant for a run that continues itself, but with --finetune it is its starting
point."""

DERIVED = {
    "lr_decay_iters": "train_iters",
    "lr_decay_samples": "train_samples",
    "start_weight_decay": "weight_decay",
    "end_weight_decay": "weight_decay",
    "eval_global_batch_size": "global_batch_size",
    "encoder_seq_length": "seq_length",
    "encoder_num_layers": "num_layers",
    "max_position_embeddings": "seq_length",
}
"""Arguments that follow another: where the two are equal, in both runs, the other one says it all."""

WARM_UP = "phd_copy_embedding_warmup_iters"
"""What only a copy embedding that was added to a model in training reads."""

ABSENT = "absent"

CONTENTS = {
    "tokenizer_model": "tokenizer_sha256",
    "data_args_path": "data_args",
    "per_split_data_args_path": "per_split_data_args",
    "trunk": "trunk_sha256",
}
"""A path, and what is recorded of the file's content: where both are known, that alone counts."""

type Arguments = Mapping[str, Any]
"""By their underscored names."""


def argument_name(flag: str) -> str:
    """``--train-iters``, ``train-iters`` and ``train_iters`` are all ``train_iters``."""
    return flag.lstrip("-").replace("-", "_")


def flag(name: str) -> str:
    """``train_iters`` as it is typed: ``--train-iters``."""
    return "--" + name.replace("_", "-")


def differing(one: Arguments, other: Arguments) -> list[str]:
    """Names in which the arguments of two trainings differ, in alphabetical order, without those that cannot
    change what is learned.
    """
    names = set(one) | set(other)
    return sorted(name for name in names if _matters(one, other, name) and not _equal(one, other, name))


def _matters(one: Arguments, other: Arguments, name: str) -> bool:
    if name in STARTS:
        return any(arguments.get("finetune") is True for arguments in (one, other))
    if name == WARM_UP:
        return any(arguments.get("phd_copy_births") for arguments in (one, other))
    if name in CONTENTS:  # the same file in another place is the same
        return not (_has_both(one, other, CONTENTS[name]) and _equal(one, other, CONTENTS[name]))
    if name in CONTENTS.values():
        return _has_both(one, other, name)
    source = DERIVED.get(name)
    if source and all(a.get(name, ABSENT) == a.get(source, ABSENT) for a in (one, other)):
        return False
    return name not in NAMES and not name.startswith(PREFIXES)


def _has_both(one: Arguments, other: Arguments, name: str) -> bool:
    return all(arguments.get(name) not in (None, ABSENT) for arguments in (one, other))


def _equal(one: Arguments, other: Arguments, name: str) -> bool:
    values = [one.get(name, ABSENT), other.get(name, ABSENT)]
    # A flag that one version of the code does not have yet is one that was off.
    return values[0] == values[1] or (
        ABSENT in values and all(not value or value in (ABSENT, "none") for value in values)
    )

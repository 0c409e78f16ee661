"""Refuse to compare runs that differ in more than what is compared, by the arguments that they recorded.

An argument wrongly held against two runs costs the user one --vary; one wrongly let pass costs a wrong
conclusion. So only what cannot change what is learned, beyond rounding, is let pass here.
"""

from collections.abc import Collection, Sequence
from typing import Any

from phd.compare.logs import Run

DECLARED = frozenset(
    {
        *("phd_copies", "phd_window", "phd_chunk", "phd_naive"),
        *("phd_prune_last_layer", "phd_attention_backend", "seed"),
        *("attention_pattern", "attention_pattern_block", "attention_pattern_sink_blocks"),
        *("attention_pattern_local_blocks", "attention_pattern_stride"),
        "attention_pattern_stride_local_blocks",
    }
)
"""What a comparison is about: the variant, how it is computed, and the seed."""

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
    # who talks to whom, and when
    *("master", "distributed_", "overlap_", "tp_comm_", "nccl_", "use_gloo_", "fake_process_group"),
    # what is computed once more instead of kept, and what is kept elsewhere
    *("recompute_", "fine_grained_", "cpu_offloading", "manual_gc"),
    # how far this process has come
    *("consumed_", "skipped_", "curr_", "do_", "num_floating_point_operations"),
    # what happens after training
    "inference_",
)
"""Arguments that begin so cannot change what is learned."""

IGNORED = {
    "paths of what is written, and of what is built from arguments that are compared; load is in STARTS": (
        "run_dir run_folder save data_cache_path keep_last_checkpoints config_logger_dir "
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
        "microbatch_group_size_per_vp_stage account_for_embedding_in_pipeline_split "
        "account_for_loss_in_pipeline_split pipeline_model_parallel_comm_backend cp_comm_type "
        "micro_batch_size eval_micro_batch_size use_distributed_optimizer "
        "num_distributed_optimizer_instances data_parallel_sharding_strategy outer_dp_sharding_strategy "
        "ddp_bucket_size ddp_num_buckets ddp_pad_buckets_for_high_nccl_busbw align_grad_reduce "
        "align_param_gather use_ring_exchange_p2p use_tp_pp_dp_mapping defer_embedding_wgrad_compute "
        "wgrad_deferral_limit delay_wgrad_compute create_all_gather_group high_priority_stream_groups "
        "use_sharp sharp_enabled_group distribute_saved_activations activation_offload_fraction "
        "offload_modules optimizer_cpu_offload optimizer_offload_fraction pin_cpu_grads pin_cpu_params"
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
    "counters and traces of one start": "iteration start_time _is_global_batch_size_explicitly_specified",
}
"""Why: which other arguments cannot change what is learned, beyond rounding and the order of sums."""

NAMES = frozenset(name for names in IGNORED.values() for name in names.split())

STARTS = frozenset({"load", "ckpt_step"})
"""Where a run continues: no matter for one that continues itself, but with --finetune its starting point."""

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

ABSENT = "absent"


def argument_name(flag: str) -> str:
    """``--train-iters``, ``train-iters`` and ``train_iters`` are all ``train_iters``."""
    return flag.lstrip("-").replace("-", "_")


def flag(name: str) -> str:
    """``train_iters`` as it is typed: ``--train-iters``."""
    return "--" + name.replace("_", "-")


def argument(run: Run, name: str) -> Any:
    """The value of an argument by its underscored name, ABSENT if ``run`` does not know it.

    A run that recorded no arguments knows those that phd_run.json has beside them.
    """
    if run.arguments is None:
        return getattr(run, name) if name in ("seq_length", "global_batch_size", "train_iters") else ABSENT
    return run.arguments.get(name, ABSENT)


def differences(run: Run, other: Run, vary: Collection[str] = ()) -> list[str]:
    """Names of the arguments in which two runs differ and must not, in alphabetical order.

    Args:
        vary: underscored names that may differ as well.
    """
    if run.arguments is None or other.arguments is None:
        names = {"seq_length", "global_batch_size"}
    else:
        names = set(run.arguments) | set(other.arguments)
    names -= {*DECLARED, *vary}
    return sorted(name for name in names if _matters(run, other, name) and not _equal(run, other, name))


def _matters(run: Run, other: Run, name: str) -> bool:
    if name in STARTS:
        return any(argument(one, "finetune") is True for one in (run, other))
    source = DERIVED.get(name)
    if source and all(argument(one, name) == argument(one, source) for one in (run, other)):
        return False
    return name not in NAMES and not name.startswith(PREFIXES)


def _equal(run: Run, other: Run, name: str) -> bool:
    values = [argument(run, name), argument(other, name)]
    # A flag that one version of the code does not have yet is one that was off.
    return values[0] == values[1] or (
        ABSENT in values and all(not value or value == ABSENT for value in values)
    )


def refuse_differences(runs: Sequence[Run], vary: Collection[str] = ()) -> None:
    """Check every run against the first.

    Args:
        vary: underscored names of arguments that may differ, beside DECLARED.

    Raises:
        ValueError: two runs differ in another argument, or no run knows one of ``vary``.
    """
    for name in vary:
        if all(argument(run, name) == ABSENT for run in runs):
            raise ValueError(f"--vary {flag(name)[2:]}: no run has recorded an argument {flag(name)}")
    for run in runs[1:]:
        names = differences(runs[0], run, vary)
        if not names:
            continue
        first = names[0]
        more = f"; they also differ in {', '.join(map(flag, names[1:]))}" if names[1:] else ""
        remedy = " ".join(f"--vary {flag(name)[2:]}" for name in names)
        raise ValueError(
            f"{runs[0].path} was trained with {flag(first)} {argument(runs[0], first)} and {run.path} with "
            f"{argument(run, first)}{more}; if that is what you compare, add {remedy}"
        )

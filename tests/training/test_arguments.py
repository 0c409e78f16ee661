"""The command line: our flags in --help, CPU defaults that users can overrule, and every refusal by name."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import pytest

from tests.trainings import MODEL, TRAINING, losses
from tests.world import ROOT

FLAGS = [*MODEL, *TRAINING, "--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "255"]
# What makes each entry of the tables of unsupported.py and never.py refuse; on a CPU unless "on" says other.
REFUSED = {
    "--attention-dropout above 0": {"attention_dropout": 0.1},
    "--cp-comm-type a2a+p2p, or one for each layer": {
        "context_parallel_size": 2,
        "cp_comm_type": ["a2a+p2p"],
        "phd_window": 4,
    },
    "--cp-comm-type a2a with key/value heads that the ranks do not divide": {
        "context_parallel_size": 4,
        "cp_comm_type": ["a2a"],
        "phd_window": 4,
    },
    "--context-parallel-size with slices (--seq-length / size / 2) shorter than the window": {
        "context_parallel_size": 2,
    },
    "--context-parallel-size with --phd-attention-backend reference": {
        "context_parallel_size": 2,
        "phd_window": 4,
        "phd_attention_backend": "reference",
    },
    "--attention-output-gate with a pruned last layer": {"attention_output_gate": True},
    "--num-experts with --calculate-per-token-loss for several copies": {
        "num_experts": 4,
        "calculate_per_token_loss": True,
    },
    "--experimental-attention-variant": {
        "experimental_attention_variant": "dsa",
        "transformer_impl": "transformer_engine",
    },
    "--window-size (sliding-window layers)": {"window_size": (8, 0)},
    "--softmax-type other than vanilla": {"softmax_type": "learnable"},
    "--apply-query-key-layer-scaling": {"apply_query_key_layer_scaling": True},
    "--position-embedding-type mrope": {"position_embedding_type": "mrope"},
    "--log-max-attention-logit and --qk-clip": {"qk_clip": True},
    "--fp16": {"fp16": True},
    "--fp8-format with rows of a linear layer that are no multiple of 16 (mxfp8: 32)": {
        "fp8": "hybrid",
        "transformer_impl": "transformer_engine",
        "seq_length": 36,
        "phd_window": 4,
        "on": "gpu",
    },
    "--fp4-format": {"fp4": "e2m1"},
    "--tp-comm-overlap with a pruned last layer": {"tp_comm_overlap": True},
    "--offload-modules core_attn with a pruned last layer": {
        "fine_grained_activation_offloading": True,
        "offload_modules": ["core_attn"],
        "on": "gpu",
    },
    "--use-megatron-fsdp": {"use_megatron_fsdp": True},
    "--use-torch-fsdp2": {"use_torch_fsdp2": True},
}
# Where our attention runs for a single copy: everything but what copies alone make impossible.
COPIES_ONLY = {
    "--num-experts with --calculate-per-token-loss for several copies",
    "--context-parallel-size with slices (--seq-length / size / 2) shorter than the window",
    "--attention-output-gate with a pruned last layer",
    "--tp-comm-overlap with a pruned last layer",
    "--offload-modules core_attn with a pruned last layer",
}
SORTED = {"sort_batch_by_documents": True, "dataloader_inter_document_masking": True, "mock_data": False}
CONSECUTIVE = {"phd_copies": 2, "phd_naive": True, "phd_consecutive_positions": True}
NEVER = {
    "--attention-backend local": {"attention_backend": Namespace(name="local")},
    "--heterogeneous-layers-config-path": {"heterogeneous_layers_config_path": "x.json"},
    "--hybrid-layer-pattern": {"hybrid_layer_pattern": "M*"},
    "--spec": {"spec": ["a", "b"]},
    "--transformer-impl inference_optimized": {"transformer_impl": "inference_optimized"},
    "--experimental-attention-variant without --transformer-impl transformer_engine": {
        "experimental_attention_variant": "gated_delta_net",
    },
    "--sequence-parallel without Transformer Engine, and without --normalization RMSNorm or with "
    "--qk-layernorm": {
        "sequence_parallel": True,
        "tensor_model_parallel_size": 2,
        "qk_layernorm": True,
    },
    "--defer-embedding-wgrad-compute without apex's kernel": {"defer_embedding_wgrad_compute": True},
    "--init-model-with-meta-device": {"init_model_with_meta_device": True},
    "--distributed-backend nccl without a GPU": {"distributed_backend": "nccl"},
    "--lr-decay-style WSD without --lr-wsd-decay-iters": {"lr_decay_style": "WSD"},
    "--moe-grouped-gemm without a GPU": {"moe_grouped_gemm": True},
    "--use-pytorch-profiler without --tensorboard-dir": {"profile": True, "use_pytorch_profiler": True},
    "--save without --save-interval": {"save": "folder"},
    "--tokenizer-type missing": {"tokenizer_type": None},
    "--tokenizer-type NullTokenizer without --vocab-size": {"vocab_size": None},
    "--wandb-project without --run-dir": {"wandb_project": "project"},
    "--dataloader-type external": {"dataloader_type": "external"},
    "--phase-transition-iterations": {"phase_transition_iterations": "2"},
    "--config-logger-dir": {"config_logger_dir": "folder"},
    "--fake-process-group": {"fake_process_group": True},
    "--gpu-sniff-test-interval without a GPU": {"gpu_sniff_test_interval": 2},
    "--use-sharp without a GPU": {"use_sharp": True},
    "--record-memory-history without a GPU": {"record_memory_history": True},
    "--profile without a GPU": {"profile": True},
    "--moe-routing-trace-path without a GPU": {"moe_routing_trace_path": "folder"},
    "--sft": {"sft": True},
    "--fim-data": {"fim_data": True},
    "--perform-rl-step": {"perform_rl_step": True},
    "--hybrid-context-parallel": {"hybrid_context_parallel": True},
    "--multi-latent-attention": {"multi_latent_attention": True},
    "--reset-attention-mask with --position-embedding-type learned_absolute": {
        "reset_attention_mask": True,
        "position_embedding_type": "learned_absolute",
    },
    "--multiple-validation-sets with --test-data-path": {
        "multiple_validation_sets": True,
        "full_validation": True,
        "eval_micro_batch_size": 1,
        "valid_data_path": ["held_out"],
        "test_data_path": ["held_out"],
    },
    "--multiple-validation-sets without --full-validation": {
        "multiple_validation_sets": True,
        "valid_data_path": ["held_out"],
    },
    "--multiple-validation-sets without --valid-data-path": {
        "multiple_validation_sets": True,
        "full_validation": True,
        "eval_micro_batch_size": 1,
    },
    "--full-validation without --multiple-validation-sets": {
        "full_validation": True,
        "eval_micro_batch_size": 1,
    },
    "--full-validation without --eval-micro-batch-size 1": {
        "full_validation": True,
        "multiple_validation_sets": True,
        "valid_data_path": ["held_out"],
    },
    "--rampup-batch-size": {"rampup_batch_size": [2, 2, 8]},
    "--mtp-num-layers (multi-token prediction)": {"mtp_num_layers": 1},
    "--overlap-moe-expert-parallel-comm": {"overlap_moe_expert_parallel_comm": True},
    "--ckpt-format other than torch_dist": {"ckpt_format": "torch"},
    "--inprocess-restart": {"inprocess_restart": True},
    "--fp8-format without --transformer-impl transformer_engine on a GPU": {"fp8": "hybrid"},
    "--enable-cuda-graph and --external-cuda-graph": {"enable_cuda_graph": True},
    "--cuda-graph-impl with packed documents": {"cuda_graph_impl": "local", "reset_attention_mask": True},
    "--cuda-graph-impl transformer_engine with --position-embedding-type yarn": {
        "cuda_graph_impl": "transformer_engine",
        "position_embedding_type": "yarn",
    },
    "--cuda-graph-impl transformer_engine with --phd-consecutive-positions": {
        "cuda_graph_impl": "transformer_engine",
        **CONSECUTIVE,
    },
    "--phd-consecutive-positions without --no-rope-fusion": {"apply_rope_fusion": True, **CONSECUTIVE},
    "--phd-consecutive-positions with --position-embedding-type other than rope and yarn": {
        "position_embedding_type": "learned_absolute",
        **CONSECUTIVE,
    },
    "--rope-max-scale with --position-embedding-type other than rope": {
        "rope_max_scale": 8,
        "position_embedding_type": "yarn",
    },
    "--rope-max-scale with --rotary-seq-len-interpolation-factor": {
        "rope_max_scale": 8,
        "rotary_seq_len_interpolation_factor": 4,
    },
    "--rope-max-scale with --use-rope-scaling": {"rope_max_scale": 8, "use_rope_scaling": True},
    "--rope-max-scale with --phd-consecutive-positions": {"rope_max_scale": 8, **CONSECUTIVE},
    "--rope-max-scale with --cuda-graph-impl other than none": {
        "rope_max_scale": 8,
        "cuda_graph_impl": "local",
    },
    "--rope-max-scale with packed documents and without --no-rope-fusion, for several rows": {
        "rope_max_scale": 8,
        "apply_rope_fusion": True,
        "dataloader_inter_document_masking": True,
    },
    "--phd-copy-embedding table with --position-embedding-type learned_absolute": {
        "phd_copies": 2,
        "phd_copy_embedding": "table",
        "position_embedding_type": "learned_absolute",
    },
    "--position-gaps-to with --position-embedding-type other than rope": {
        "position_gaps_to": 128,
        "position_embedding_type": "yarn",
    },
    "--lora-rank with fewer --num-query-groups than tensor-parallel ranks": {
        "lora_rank": 8,
        "tensor_model_parallel_size": 4,
    },
    "--s2-groups with --attention-pattern other than full": {"s2_groups": 4, "attention_pattern": "sink"},
    "--s2-groups with --phd-naive": {"s2_groups": 4, "phd_copies": 2, "phd_naive": True},
    "--s2-groups with an odd number of key/value heads": {"s2_groups": 4, "num_query_groups": 1},
    "--s2-groups with --seq-length that is no multiple of twice as many": {"s2_groups": 3},
    "--lora-rank with --attention-output-gate": {"lora_rank": 8, "attention_output_gate": True},
    "--lora-rank with --experimental-attention-variant": {
        "lora_rank": 8,
        "experimental_attention_variant": "dsa",
        "transformer_impl": "transformer_engine",
    },
    "--train-only with --moe-router-enable-expert-bias": {
        "train_only": "norm",
        "moe_router_enable_expert_bias": True,
    },
    "--position-gaps-to with --rope-max-scale": {"position_gaps_to": 128, "rope_max_scale": 8},
    "--position-gaps-to with --phd-consecutive-positions": {"position_gaps_to": 128, **CONSECUTIVE},
    "--position-gaps-to with --cuda-graph-impl other than none": {
        "position_gaps_to": 128,
        "cuda_graph_impl": "local",
    },
    "--position-gaps-to without --no-rope-fusion, for several rows": {
        "position_gaps_to": 128,
        "apply_rope_fusion": True,
    },
    "--mask-document-starts without packed documents": {"mask_document_starts": True},
    "--sort-batch-by-documents without --dataloader-inter-document-masking": {
        "sort_batch_by_documents": True
    },
    "--sort-batch-by-documents with --mock-data": {**SORTED, "mock_data": True},
    "--sort-batch-by-documents with --dataloader-type cyclic": {**SORTED, "dataloader_type": "cyclic"},
    "--sort-batch-by-documents with --step-batch-size-schedule": {
        **SORTED,
        "step_batch_size_schedule": ["0:4", "8:8"],
    },
    "--sort-batch-by-documents with --dataloader-defer-npy-index-mmap": {
        **SORTED,
        "dataloader_defer_npy_index_mmap": True,
    },
    "--optimizer-cpu-offload without a GPU": {"optimizer_cpu_offload": True},
    "--cpu-offloading-num-layers without a GPU": {"cpu_offloading_num_layers": 1},
    "--fine-grained-activation-offloading without a GPU": {"fine_grained_activation_offloading": True},
}


def parse(flags: list[str]) -> Namespace:
    from megatron.training.arguments import parse_args

    from phd.training.arguments import add_phd_arguments

    sys.argv = ["pretrain_phd.py", *flags]
    return parse_args(add_phd_arguments)


def refusals(always: dict, changes: dict[str, dict]) -> dict[str, str]:
    """What start-up says to each change of otherwise good arguments."""
    from copy import deepcopy
    from unittest.mock import patch

    from phd.megatron import cpu
    from phd.training.unsupported import refuse_unsupported

    answers = {}
    parsed = parse(FLAGS)
    for flag, change in {"nothing": {}, **changes}.items():
        args = deepcopy(parsed)
        vars(args).update(always | change)
        gpu = change.get("on") == "gpu"
        try:
            with patch.object(cpu, "needed", lambda gpu=gpu: not gpu):
                refuse_unsupported(args)
            answers[flag] = ""
        except ValueError as error:
            answers[flag] = str(error)
    return answers


def table_flags() -> tuple[set[str], set[str]]:
    from phd.training.never import NEVER, TO_TRAIN
    from phd.training.unsupported import UNSUPPORTED

    return {entry.flag for entry in UNSUPPORTED}, {entry.flag for entry in (*NEVER, *TO_TRAIN)}


def test_tables_are_all_tested(world):
    assert world.run(table_flags) == [(set(REFUSED), set(NEVER))]


def test_every_unsupported_flag_is_refused_with_copies(world):
    """By name and with a remedy."""
    (answers,) = world.run(refusals, {"phd_copies": 2}, REFUSED)
    assert answers.pop("nothing") == ""
    for flag, answer in answers.items():
        assert re.fullmatch(rf"--phd-copies 2 does not run with {re.escape(flag)} \(.+\)", answer), flag


def test_unsupported_flags_are_megatrons_own_business_without_our_attention(world):
    """K = 1, one document; context parallelism with Transformer Engine, whose attention then runs."""
    (answers,) = world.run(refusals, {"phd_copies": 1, "transformer_impl": "transformer_engine"}, REFUSED)
    assert set(answers.values()) == {""}


def start_up_line() -> str:
    from phd.training.arguments import phd_config_from_args
    from phd.training.metrics import describe

    args = parse([*FLAGS, "--phd-copies", "2", "--reset-attention-mask"])
    args.world_size = 1
    return describe(args, phd_config_from_args(args))


def test_start_up_line_says_what_serves_what(world):
    (line,) = world.run(start_up_line)
    assert line.startswith("PHD-CSWA-2-16-32 on packed documents: 2 copies a token")
    assert "no GPU found: 1 CPU rank(s)" in line
    assert line.endswith("; Adam by torch; clipping by torch; weight-gradient accumulation by torch")


def defaults_with_a_gpu(modules: set[str], flags: str = "") -> dict:
    """What is trained with where there is a GPU and, of what is looked for, these modules."""
    from unittest.mock import patch

    from phd.megatron import cpu
    from phd.training import arguments

    def find_spec(name: str) -> object:
        return object() if name in modules else None

    with patch.object(cpu, "needed", lambda: False), patch.object(arguments, "find_spec", find_spec):
        return vars(parse([*FLAGS, *flags.split()]))


APEX = {"fused_weight_gradient_mlp_cuda", "scaled_masked_softmax_cuda"}


@pytest.mark.parametrize("engine", [False, True], ids=["local", "transformer_engine"])
@pytest.mark.parametrize("apex", [False, True], ids=["torch", "apex"])
def test_a_gpu_trains_with_the_kernels_that_are_there(world, engine, apex):
    """Megatron imports them without looking; with Transformer Engine too, for its own output layer."""
    modules = (APEX if apex else set()) | ({"transformer_engine"} if engine else set())
    (args,) = world.run(defaults_with_a_gpu, modules)
    assert args["transformer_impl"] == ("transformer_engine" if engine else "local")
    assert args["apply_rope_fusion"] == engine
    assert args["gradient_accumulation_fusion"] == args["masked_softmax_fusion"] == apex


def test_no_mask_is_made_in_the_dataloader(world):
    """Of s*s elements a sample, for the vanilla model too, which reads none."""
    (args,) = world.run(defaults_with_a_gpu, {"transformer_engine"})
    assert not args["create_attention_mask_in_dataloader"]


def test_asynchronous_saves_are_megatrons_own_unless_asked(world):
    """Also where nvidia_resiliency_ext is there, of which Megatron refuses older versions."""
    modules = {"transformer_engine", "nvidia_resiliency_ext"}
    for flags, strategy in (("--async-save", "mcore"), ("--async-save --async-strategy nvrx", "nvrx")):
        (args,) = world.run(defaults_with_a_gpu, modules, flags)
        assert args["async_strategy"] == strategy


@pytest.mark.parametrize(
    ("always", "what"),
    [
        ({"dataloader_inter_document_masking": True}, "packed documents"),
        ({"reset_attention_mask": True}, "packed documents"),
        ({"context_parallel_size": 2}, "--context-parallel-size"),
    ],
)
def test_unsupported_flags_are_refused_wherever_our_attention_runs(always, what, world):
    (answers,) = world.run(refusals, {"phd_copies": 1, **always}, REFUSED)
    assert answers.pop("nothing") == ""
    for flag, answer in answers.items():
        # where Transformer Engine's own attention shares the sequence, ours does not run
        engine = what == "--context-parallel-size" and "transformer_impl" in REFUSED[flag]
        if engine or flag in COPIES_ONLY:
            assert answer == "", flag
        else:
            assert answer.startswith(f"{what} does not run with "), flag
            assert f" {flag} (" in answer


def test_never_supported_flags_are_refused(world):
    for copies in (1, 2):
        (answers,) = world.run(refusals, {"phd_copies": copies}, NEVER)
        assert answers.pop("nothing") == ""
        for flag, answer in answers.items():
            assert f"pretrain_phd.py does not run with {flag} (" in answer, flag


# What the remedy of an entry changes, where it is more than to leave the flag out.
REMEDIES: dict[str, dict] = {
    "--attention-dropout above 0": {"attention_dropout": 0.0},
    "--cp-comm-type a2a+p2p, or one for each layer": {"cp_comm_type": ["p2p"]},
    "--cp-comm-type a2a with key/value heads that the ranks do not divide": {"cp_comm_type": ["all_gather"]},
    "--context-parallel-size with slices (--seq-length / size / 2) shorter than the window": {
        "phd_window": 10
    },
    "--context-parallel-size with --phd-attention-backend reference": {"phd_attention_backend": "flash"},
    "--attention-output-gate with a pruned last layer": {"phd_prune_last_layer": False},
    "--softmax-type other than vanilla": {"softmax_type": "vanilla"},
    "--position-embedding-type mrope": {"position_embedding_type": "rope"},
    "--fp16": {"fp16": False, "bf16": True},
    "--fp4-format": {"fp4": None, "bf16": True},
    "--fp8-format with rows of a linear layer that are no multiple of 16 (mxfp8: 32)": {"seq_length": 40},
    "--tp-comm-overlap with a pruned last layer": {"phd_prune_last_layer": False},
    "--offload-modules core_attn with a pruned last layer": {"phd_prune_last_layer": False},
    "--use-megatron-fsdp": {"use_megatron_fsdp": False, "use_distributed_optimizer": True},
    "--use-torch-fsdp2": {"use_torch_fsdp2": False, "use_distributed_optimizer": True},
    "--reset-attention-mask with --position-embedding-type learned_absolute": {"reset_position_ids": True},
    "--multiple-validation-sets with --test-data-path": {"test_data_path": None},
    "--multiple-validation-sets without --full-validation": {
        "full_validation": True,
        "eval_micro_batch_size": 1,
    },
    "--multiple-validation-sets without --valid-data-path": {"valid_data_path": ["held_out"]},
    "--full-validation without --multiple-validation-sets": {
        "multiple_validation_sets": True,
        "valid_data_path": ["held_out"],
    },
    "--full-validation without --eval-micro-batch-size 1": {"eval_micro_batch_size": 1},
    "--rampup-batch-size": {"rampup_batch_size": None, "step_batch_size_schedule": "0:2 1K:8"},
    "--ckpt-format other than torch_dist": {"ckpt_format": "torch_dist"},
    "--transformer-impl inference_optimized": {"transformer_impl": "local"},
    "--sequence-parallel without Transformer Engine, and without --normalization RMSNorm or with "
    "--qk-layernorm": {"qk_layernorm": False},
    "--lr-decay-style WSD without --lr-wsd-decay-iters": {"lr_wsd_decay_iters": 2},
    "--use-pytorch-profiler without --tensorboard-dir": {"tensorboard_dir": "logs"},
    "--save without --save-interval": {"save_interval": 1},
    "--profile without a GPU": {"use_pytorch_profiler": True, "tensorboard_dir": "logs"},
    "--tokenizer-type missing": {"tokenizer_type": "SentencePieceTokenizer"},
    "--tokenizer-type NullTokenizer without --vocab-size": {"vocab_size": 255},
    "--wandb-project without --run-dir": {"wandb_save_dir": "folder"},
    "--dataloader-type external": {"dataloader_type": "cyclic"},
    "--enable-cuda-graph and --external-cuda-graph": {"enable_cuda_graph": False, "cuda_graph_impl": "local"},
    "--cuda-graph-impl with packed documents": {"cuda_graph_impl": "none"},
    "--position-gaps-to with --position-embedding-type other than rope": {"position_embedding_type": "rope"},
    "--position-gaps-to with --cuda-graph-impl other than none": {"cuda_graph_impl": "none"},
    "--position-gaps-to without --no-rope-fusion, for several rows": {"apply_rope_fusion": False},
    "--mask-document-starts without packed documents": {"dataloader_inter_document_masking": True},
    "--cuda-graph-impl transformer_engine with --position-embedding-type yarn": {"cuda_graph_impl": "local"},
    "--cuda-graph-impl transformer_engine with --phd-consecutive-positions": {"cuda_graph_impl": "local"},
    "--phd-consecutive-positions without --no-rope-fusion": {"apply_rope_fusion": False},
    "--phd-consecutive-positions with --position-embedding-type other than rope and yarn": {
        "position_embedding_type": "rope"
    },
    "--rope-max-scale with --position-embedding-type other than rope": {"position_embedding_type": "rope"},
    "--rope-max-scale with --cuda-graph-impl other than none": {"cuda_graph_impl": "none"},
    "--rope-max-scale with packed documents and without --no-rope-fusion, for several rows": {
        "apply_rope_fusion": False
    },
    "--phd-copy-embedding table with --position-embedding-type learned_absolute": {
        "phd_copy_embedding": "vector"
    },
    "--sort-batch-by-documents without --dataloader-inter-document-masking": SORTED,
    "--sort-batch-by-documents with --dataloader-type cyclic": {"dataloader_type": "single"},
    "--fp8-format without --transformer-impl transformer_engine on a GPU": {"fp8": None, "bf16": True},
    "--attention-backend local": {"attention_backend": Namespace(name="auto")},
    "--lora-rank with fewer --num-query-groups than tensor-parallel ranks": {"tensor_model_parallel_size": 2},
    "--s2-groups with --seq-length that is no multiple of twice as many": {"s2_groups": 4},
}


def remedies() -> dict[str, str]:
    from phd.training.never import NEVER, TO_TRAIN
    from phd.training.unsupported import UNSUPPORTED

    return {entry.flag: entry.remedy for entry in (*UNSUPPORTED, *NEVER, *TO_TRAIN)}


def test_every_remedy_is_accepted(world):
    """With what it says in place of the flag, or beside it, nothing is refused any more."""
    changes = REFUSED | NEVER
    (texts,) = world.run(remedies)
    assert {flag for flag, text in texts.items() if not text.startswith("leave ")} <= set(REMEDIES)
    for copies, flags in ((2, REFUSED), (1, NEVER)):
        walked = {flag: changes[flag] | REMEDIES[flag] for flag in flags if flag in REMEDIES}
        (answers,) = world.run(refusals, {"phd_copies": copies}, walked)
        assert {flag: answer for flag, answer in answers.items() if answer} == {}


FP8 = {"fp8": "hybrid", "transformer_impl": "transformer_engine", "phd_copies": 2, "on": "gpu"}


def test_rows_in_fp8(world):
    """40 positions, 2 samples, K = 2; 80 rows of the last copy alone."""
    whole = {"phd_prune_last_layer": False}
    short = {"seq_length": 36, "micro_batch_size": 4}
    split = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "attention_dropout": 0.0}
    cases = {
        "160 and 80": (FP8, True),
        "72 and 36": (FP8 | {"seq_length": 18}, False),
        "80 and 40": (FP8 | {"micro_batch_size": 1}, False),
        "80 alone": (FP8 | whole | {"micro_batch_size": 1}, True),
        "80 alone, head of 40": (FP8 | whole | {"micro_batch_size": 1, "fp8_output_proj": True}, False),
        "80 and 40 on 2 ranks": (FP8 | split, False),
        "80 alone on 2 ranks": (FP8 | split | whole, True),
        "72 in validation": (FP8 | whole | short | {"eval_micro_batch_size": 1}, False),
        "36, Megatron's own": (FP8 | {"seq_length": 18, "phd_copies": 1}, True),
        "mxfp8: 160 and 80": (FP8 | {"fp8_recipe": "mxfp8"}, False),
        "mxfp8: 160 alone": (FP8 | whole | {"fp8_recipe": "mxfp8"}, True),
        "80 for each text": (FP8 | whole | {"sample_prompts": ["a"]}, True),
        "72 for each text": (FP8 | whole | short | {"sample_prompts": ["a"]}, False),
        "sizes of the checkpoint": (FP8 | {"seq_length": None}, True),
    }  # fmt: skip
    (answers,) = world.run(refusals, {}, {name: change for name, (change, _) in cases.items()})
    assert answers.pop("nothing") == ""
    for name, (_, runs) in cases.items():
        assert (answers[name] == "") == runs, (name, answers[name])


def test_gpu_flags_are_switched_off_on_a_cpu(world, base_flags, tmp_path):
    """The command line of a GPU trains here as without them; one line each, on the first rank."""
    copies = [*base_flags, "--phd-copies", "2", "--no-phd-prune-last-layer", "--train-iters", "2"]
    copies += ["--tensorboard-dir"]
    gpu = ["--cuda-graph-impl", "transformer_engine", "--optimizer-cuda-graph", "--tp-comm-overlap"]
    plain = world.pretrain([*copies, str(tmp_path / "plain")], ranks=2)
    switched = world.pretrain([*copies, str(tmp_path / "switched"), *gpu], ranks=2)
    assert "switched off" not in plain
    for flag in ("--cuda-graph-impl", "--optimizer-cuda-graph", "--tp-comm-overlap"):
        assert switched.count(f"> no GPU found: {flag} is switched off, ") == 1
    assert losses(tmp_path / "plain") == losses(tmp_path / "switched")


def cpu_defaults() -> tuple[str, str, str, int]:
    args, chosen = (
        parse(FLAGS),
        parse([*FLAGS, "--transformer-impl", "transformer_engine", "--num-workers", "3"]),
    )
    return args.distributed_backend, args.transformer_impl, chosen.transformer_impl, chosen.num_workers


def test_cpu_defaults_yield_to_the_users_flags(world):
    assert world.run(cpu_defaults) == [("gloo", "local", "transformer_engine", 3)]


def refused_data(fields: dict, num_samples: list[int | None]) -> str:
    """What start-up says to data sets that are described so."""
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from megatron.core.tokenizers import MegatronTokenizer

    from phd.training.dataset import refuse_empty_splits, refuse_missing

    config = GPTDatasetConfig(
        random_seed=1,
        tokenizer=MegatronTokenizer.from_pretrained(metadata_path={"library": "null-text"}, vocab_size=255),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        **{"sequence_length": 8, **fields},
    )
    try:
        refuse_missing(config)
        refuse_empty_splits(config, num_samples)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("split", "num_samples", "message"),
    [
        ("90,10,0", [10, 10, 10], ""),
        ("100,0,0", [10, 0, 0], ""),
        ("100,0,0", [10, 10, 10], "leaves data for validation: .* or pass --eval-iters 0"),
        ("999,1,0", [10, 10, 0], r"--split 999,1,0 leaves .* no document for validation \(60 in all\)"),
    ],
    ids=["whole", "unused", "none", "empty"],
)
def test_a_split_without_documents_is_refused(world, data, split, num_samples, message):
    """Megatron's dataset builder would look for tokens in it for ever, or its loop fail at the validation."""
    blend = ([data[data.index("--data-path") + 1]], None)
    (answer,) = world.run(refused_data, {"blend": blend, "split": split}, num_samples)
    assert re.search(message, answer) if message else answer == ""


def test_a_whole_validation_set_without_a_sample_is_refused(world, data):
    """--full-validation asks for no number of samples."""
    blend = ([data[data.index("--data-path") + 1]], None)
    whole = [10, None, 10]
    assert world.run(refused_data, {"blend_per_split": [blend, blend, None]}, whole) == [""]
    fields = {"blend_per_split": [blend, blend, None], "sequence_length": 10**7}
    (answer,) = world.run(refused_data, fields, whole)
    assert re.search(r"has \d+ tokens for validation, where a sample takes 10000001 .*--full-valid", answer)
    (answer,) = world.run(refused_data, {"blend_per_split": [blend, None, None]}, whole)
    assert "leaves data for validation" in answer


def test_data_in_an_object_store_are_megatrons_to_read(world):
    fields: dict = {"blend": (["s3://bucket/prefix"], None), "split": "90,10,0"}
    assert world.run(refused_data, fields | {"object_storage_cache_path": "cache"}, [10, 10, 0]) == [""]
    (answer,) = world.run(refused_data, fields, [10, 10, 0])
    assert answer.startswith("s3://bucket/prefix needs --object-storage-cache-path")


def failure(flags: list[str]) -> str:
    """How a training with these flags ends."""
    from tests.world import run_pretrain

    try:
        return run_pretrain(flags)
    except RuntimeError as error:
        return str(error)


def test_no_data_is_not_mock_data(world):
    """Megatron would make it without being asked, and fail over it."""
    (end,) = world.run(failure, [flag for flag in FLAGS if flag != "--mock-data"])
    assert "pretrain_phd.py: error: rank 0: there is no data: pass --data-path" in end


def refused_tokenizer(prefixes: list[str], tokenizer: str) -> str:
    from phd.training.dataset import refuse_other_tokenizer

    config = Namespace(blend=None, blend_per_split=[(prefixes[:1], None), None, (prefixes[1:], None)])
    try:
        refuse_other_tokenizer(config, tokenizer)
    except ValueError as error:
        return str(error)
    return ""


def test_data_of_another_tokenizer_is_refused(world, tmp_path):
    """By the cards of `phd data`; what has none, as Megatron's own data, passes."""
    mine, other = tmp_path / "mine.model", tmp_path / "other.model"
    mine.write_bytes(b"mine")
    other.write_bytes(b"other")
    digest = hashlib.sha256(b"mine").hexdigest()
    (tmp_path / "tokenized.json").write_text(json.dumps({"made_from": {"tokenizer_sha256": digest}}))
    (tmp_path / "merged.json").write_text(json.dumps({"tokenizer_sha256": digest}))
    prefixes = [str(tmp_path / name) for name in ("megatrons", "tokenized", "merged")]
    assert world.run(refused_tokenizer, prefixes, str(mine)) == [""]
    assert world.run(refused_tokenizer, prefixes[:1], str(other)) == [""]
    for prefix in prefixes[1:]:
        (answer,) = world.run(refused_tokenizer, [prefixes[0], prefix], str(other))
        assert answer.startswith(f"{prefix} was made with another tokenizer than --tokenizer-model {other}")


def refused_at_start(flags: list[str]) -> str:
    """What pretrain_phd.py says to these flags before it begins, if it refuses them."""
    from phd.training.arguments import parse_and_validate_args

    sys.argv = ["pretrain_phd.py", *flags]
    try:
        parse_and_validate_args()
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train-iters 100 --lr-warmup-iters 99", ""),
        (
            "--train-iters 100 --lr-warmup-iters 100",
            "--lr-warmup-iters 100 must be less than --train-iters 100",
        ),
        (
            "--lr-decay-iters 50 --lr-warmup-iters 60",
            "less than --lr-decay-iters 50: add --lr-warmup-iters 5",
        ),
        ("--train-iters 100 --lr-warmup-iters 100 --skip-train", ""),
    ],
)
def test_a_warmup_longer_than_the_training_is_refused(world, flags, message):
    (answer,) = world.run(refused_at_start, [*FLAGS, *flags.split()])
    assert message in answer and bool(message) == bool(answer)


def test_an_order_for_fewer_iterations_is_refused(world):
    def said(flags: str) -> str:
        (answer,) = world.run(refused_at_start, [*FLAGS, *flags.split()])
        return answer

    assert said("--data-iters 4") == ""
    assert said("--data-iters 3").startswith("--data-iters 3 is less than --train-iters 4: raise it")


def without(flag: str) -> list[str]:
    at = FLAGS.index(flag)
    return [*FLAGS[:at], *FLAGS[at + 2 :]]


@pytest.mark.parametrize("more", ["", "--attention-pattern longgen-sink"])
def test_no_layers(world, more):
    answers = world.run(refused_at_start, [*without("--num-layers"), *more.split()])
    assert answers == ["--num-layers is missing: it has no default"]


def test_no_length(world):
    """Where our own checks would calculate with it."""
    flags = [*without("--seq-length"), "--phd-copies", "2", "--context-parallel-size", "2"]
    assert world.run(refused_at_start, flags) == ["--seq-length is missing: it has no default"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--lr", "--lr is missing: it has no default"),
        ("--train-iters", "pass --train-iters or --train-samples"),
    ],
)
def test_nothing_to_train_by(world, flag, message):
    """Megatron finds out with the model built, and names no flag."""
    (end,) = world.run(failure, without(flag))
    assert f"pretrain_phd.py: error: {message}" in end


def test_no_interval_of_validations(world):
    """Megatron divides by it, though there is no validation."""
    assert world.run(eval_interval, [*without("--eval-interval"), "--eval-iters", "0"]) == [1000]


def eval_interval(flags: list[str]) -> int:
    from phd.training.arguments import parse_and_validate_args

    sys.argv = ["pretrain_phd.py", *flags]
    return parse_and_validate_args().args.eval_interval


def longest_temporary_folder() -> int:
    from phd.training.arguments import LONGEST_TEMPORARY_FOLDER

    return LONGEST_TEMPORARY_FOLDER


def test_a_long_temporary_folder(world):
    """Workers of a DataLoader have sockets in it: too long for theirs, they would be waited for for ever."""
    (longest,) = world.run(longest_temporary_folder)
    listen = "from multiprocessing.connection import Listener; Listener(family='AF_UNIX')"
    codes, answers = [], []
    with tempfile.TemporaryDirectory() as parent:
        for length in (longest, longest + 1):
            folder = Path(parent, "x" * (length - len(parent) - 1))
            folder.mkdir()
            environment = os.environ | {"TMPDIR": str(folder)}
            codes.append(subprocess.run([sys.executable, "-c", listen], env=environment).returncode)
            answers += world.run(refused_for_its_temporary_folder, str(folder))
    assert codes == [0, 1]
    assert answers[0] == ""
    assert f"has a name of {longest + 1} bytes" in answers[1] and "set TMPDIR to a shorter" in answers[1]


def refused_for_its_temporary_folder(folder: str) -> str:
    import tempfile
    from unittest.mock import patch

    from phd.training.arguments import refuse_long_temporary_folder

    with patch.object(tempfile, "tempdir", folder):
        try:
            refuse_long_temporary_folder()
        except ValueError as error:
            return str(error)
    return ""


def test_a_run_folder_continues_from_its_own_checkpoints(world):
    """A requeued job would begin again from what --load names, or at iteration 0, at every start."""
    run = [*FLAGS, "--run-dir", "run"]
    assert world.run(refused_at_start, [*run, "--load", "run/checkpoints/"]) == [""]
    (answer,) = world.run(refused_at_start, [*run, "--load", "other"])
    assert "--load other would begin there again" in answer and "pass --pretrained-checkpoint" in answer
    (answer,) = world.run(refused_at_start, [*run, "--finetune"])
    assert "--finetune would set --run-dir run back to iteration 0" in answer


def test_help_and_a_bad_value(world):
    """--help holds our flags; a bad value is one line that names the flag."""
    (shown,), (bad,) = (world.run(failure, flags) for flags in (["--help"], [*FLAGS, "--phd-copies", "0"]))
    for flag in ("copies", "window", "chunk", "naive", "attention-backend"):
        assert f"--phd-{flag}" in shown
    assert "--override-phd-variant" in shown
    assert bad.strip().startswith("exit: pretrain_phd.py: error: --phd-copies must be at least 1")


@pytest.mark.slow
def test_command_line_as_users_see_it():
    """The same as a process of its own, without a traceback."""
    command = [sys.executable, str(ROOT / "pretrain_phd.py")]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120).stdout
    assert "--phd-copies" in shown
    bad = subprocess.run([*command, *FLAGS, "--phd-copies", "0"], capture_output=True, text=True, timeout=120)
    assert bad.returncode == 1
    assert "pretrain_phd.py: error: --phd-copies must be at least 1" in bad.stderr
    assert "Traceback" not in bad.stderr


def assigned_arguments() -> set[str]:
    """Names that the sources of a training assign to as ``args.name``."""
    folders = ("phd/megatron", "phd/training", "phd/checkpoint")
    files = [ROOT / "pretrain_phd.py", *(file for folder in folders for file in (ROOT / folder).glob("*.py"))]
    return {
        node.attr
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "args"
    }


def not_flags(names: list[str]) -> list[str]:
    from phd.training.arguments import _parse

    sys.argv = ["pretrain_phd.py", *FLAGS]
    _, flags = _parse()
    return [name for name in names if name not in flags]


def test_nothing_but_flags_is_left_among_the_arguments(world):
    """For another file to find; but for what is to be saved with them."""
    names = sorted(assigned_arguments())
    assert {"save", "load", "eval_interval"} <= {*names}
    assert world.run(not_flags, names) == [["phd_copy_births", "tokenizer_sha256"]]

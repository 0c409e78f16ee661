"""Every flag of the parser is read by somebody, or refused when it is given: with a new release of Megatron
this test shows what has joined.
"""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.trainings import MODEL, TRAINING
from tests.world import ROOT

FLAGS = [*MODEL, *TRAINING, "--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "255"]
# Megatron's sources of which a GPT's training with this program runs nothing, or whose reading means nothing:
# checks and copies of arguments.
NOT_TRAINING = (
    *("core/inference", "core/export", "core/post_training", "core/resharding", "core/ssm/mamba"),
    *("core/models/bert", "core/models/T5", "core/models/mamba", "core/models/vision", "core/models/audio"),
    *("core/models/multimodal", "core/models/mimo", "core/models/hybrid", "core/models/huggingface"),
    *("core/models/common/embeddings/relative", "core/transformer/multi_latent", "core/datasets/bert"),
    *("core/transformer/multi_token", "core/datasets/t5", "core/datasets/masked", "core/datasets/multimodal"),
    *("core/datasets/data_schedule", "training/arguments.py", "training/yaml_arguments", "training/config"),
    *("training/datasets/fim", "training/datasets/sft", "training/inprocess", "training/models/hybrid"),
    "training/distillation/cached",
)
# What the scan does not find, and who reads it.
READ_OTHERWISE = {
    "Megatron's check makes another argument of it": {
        *("use_rotary_position_embeddings", "no_weight_decay_cond_type", "recompute_activations"),
        *("grad_reduce_in_bf16", "num_layers_per_virtual_pipeline_stage", "cuda_graph_scope_deprecated"),
        "num_virtual_stages_per_pipeline_rank",
    },
    "Megatron's check refuses it, with the flag to use": {"batch_size", "warmup", "model_parallel_size"},
    "Megatron says that it has no effect, or it asks for what is done anyhow": {
        *("deprecated_use_mcore_models", "use_dist_ckpt_deprecated", "dist_ckpt_format_deprecated"),
        *("ckpt_fully_parallel_save_deprecated", "disable_msc_deprecated"),
    },
    "Megatron puts the optimizer's name in front": {
        *("muon_momentum", "muon_split_qkv", "muon_nesterov", "muon_fp32_matmul_prec", "muon_tp_mode"),
        *("muon_coefficient_type", "muon_num_ns_steps", "muon_extra_scale_factor"),
    },
    "phd/old_flags.py stops at it, with the new spelling": {
        *("attention_pattern_block", "attention_pattern_sink_blocks", "attention_pattern_local_blocks"),
        *("attention_pattern_stride", "attention_pattern_stride_local_blocks"),
    },
    "argparse does": {"help"},
}
# Of what Megatron's own pretrain_gpt.py reads (0.19): what this program does not. It is in no wheel.
OF_PRETRAIN_GPT = {
    *("logits_load_dir", "logits_load_decode_threads", "logits_load_prefetch_factor", "sft", "fim_data"),
    *("logits_load_msc_prefetch_depth", "logits_load_kd_loss_alpha", "logits_load_ignore_errors"),
    *("per_dataset_sequences_path", "hybrid_context_parallel", "fim_rate", "fim_spm_rate", "yaml_cfg"),
    *("fim_split_sample", "fim_fragment_rate", "fim_no_prefix", "fim_prefix_token", "fim_middle_token"),
    *("fim_suffix_token", "fim_pad_token", "fim_eod_token", "log_straggler", "inprocess_restart", "spec"),
    *("overlap_moe_expert_parallel_comm", "heterogeneous_layers_config_path", "mtp_num_layers"),
}


def names_read() -> set[str]:
    """Names of attributes that are read, by whatever name their object goes."""
    package = importlib.util.find_spec("megatron.core")
    assert package is not None and package.submodule_search_locations is not None
    megatron = Path(package.submodule_search_locations[0]).parent
    files = [
        path
        for path in megatron.rglob("*.py")
        if not str(path.relative_to(megatron)).startswith(NOT_TRAINING)
    ]
    read = set()
    for folder in ("megatron", "checkpoint", "training"):
        files += (ROOT / "phd" / folder).glob("*.py")
    for path in [*files, ROOT / "pretrain_phd.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
                read |= {str(word.value) for word in node.args if isinstance(word, ast.Constant)}
    return read


def listed() -> dict[str, bool]:
    """Arguments of all flags, and whether they are in the list of the unread."""
    from phd.training.arguments import _parse
    from phd.training.unread import why_unread

    sys.argv = ["pretrain_phd.py", *FLAGS]
    _, flags = _parse()
    return {name: why_unread(name) is not None for name in [*flags]}


@pytest.fixture(scope="module")
def unread(world) -> dict[str, bool]:
    (answer,) = world.run(listed)
    return answer


def test_every_flag_is_read_or_refused(unread):
    read = names_read()
    explained = set().union(*READ_OTHERWISE.values())
    assert not {name for name, refused in unread.items() if name not in read | explained and not refused}
    assert not explained & (read - {"help", "warmup"}), "read after all"
    assert explained <= set(unread), "there is no such flag any more"


def test_what_pretrain_gpt_reads_is_refused(unread):
    """What is not in the list is refused for another reason."""
    source = "".join((ROOT / "phd" / "training" / name).read_text() for name in ("never.py", "arguments.py"))
    for name in OF_PRETRAIN_GPT:
        assert unread[name] or f"a.{name}" in source or f'"--{name.replace("_", "-")}"' in source, name


def answers(cases: list[str]) -> list[str]:
    from phd.training.arguments import _parse
    from phd.training.unread import refuse_unread

    said = []
    for case in cases:
        sys.argv = ["pretrain_phd.py", *FLAGS, *case.split()]
        try:
            refuse_unread(*_parse())
            said.append("")
        except ValueError as error:
            said.append(str(error))
    return said


def test_given_flags_that_nothing_reads(world):
    """In one line, by the names that were typed; a default that is spelled out does no harm."""
    cases = [
        "--logits-load-dir /does/not/exist",
        "--img-h 128 --rl-skip-bos-token",
        "--openai-gelu",
        "--inference-max-seq-length 7",
        "--no-data-sharding",
        "--img-h 224 --num-workers 2 --use-mcore-models",
    ]
    said = world.run(answers, cases)[0]
    assert said == [
        "nothing here reads --logits-load-dir (there is no distillation here): leave it out",
        "nothing here reads --rl-skip-bos-token (of reinforcement learning), --img-h (of vision and audio): "
        "leave them out",
        "nothing here reads --openai-gelu (Megatron reads it nowhere): leave it out",
        "nothing here reads --inference-max-seq-length (of inference): leave it out",
        "nothing here reads --no-data-sharding (of vision and audio): leave it out",
        "",
    ]

"""Flags that need a Python module which this project does not install. Megatron finds out late, with the
model built, or goes on without what was asked for.
"""

from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec

OTHER_IMPLEMENTATION = "leave it out, or install NVIDIA's Transformer Engine (the Dockerfile has it)"
RESILIENCY = "pip install nvidia-resiliency-ext, or leave it out"

NEEDED: tuple[tuple[str, Callable[[Namespace], bool], str, str], ...] = (
    (
        "--transformer-impl transformer_engine",
        lambda a: a.transformer_impl == "transformer_engine",
        "transformer_engine",
        OTHER_IMPLEMENTATION,
    ),
    (
        "--te-precision-config-file",
        lambda a: a.te_precision_config_file is not None,
        "transformer_engine",
        OTHER_IMPLEMENTATION,
    ),
    (
        "--use-transformer-engine-op-fuser",
        lambda a: a.use_transformer_engine_op_fuser,
        "transformer_engine",
        OTHER_IMPLEMENTATION,
    ),
    (
        "--use-te-activation-func",
        lambda a: a.use_te_activation_func,
        "transformer_engine",
        OTHER_IMPLEMENTATION,
    ),
    (
        "--fused-residual-rmsnorm",
        lambda a: a.fused_residual_rmsnorm,
        "transformer_engine",
        OTHER_IMPLEMENTATION,
    ),
    ("--moe-permute-fusion", lambda a: a.moe_permute_fusion, "transformer_engine", OTHER_IMPLEMENTATION),
    ("--moe-router-fusion", lambda a: a.moe_router_fusion, "transformer_engine", OTHER_IMPLEMENTATION),
    ("--te-rng-tracker", lambda a: a.te_rng_tracker, "transformer_engine", OTHER_IMPLEMENTATION),
    (
        "--moe-token-dispatcher-type flex",
        lambda a: a.moe_token_dispatcher_type == "flex" and bool(a.num_experts),
        "deep_ep",
        "use alltoall, or install DeepEP",
    ),
    (
        "--experimental-attention-variant gated_delta_net",
        lambda a: a.experimental_attention_variant == "gated_delta_net",
        "fla",
        "pip install flash-linear-attention, or leave it out",
    ),
    (
        "--num-distributed-optimizer-instances above 1",
        lambda a: a.num_distributed_optimizer_instances > 1,
        "einops",
        "pip install einops, or leave it out",
    ),
    (
        "--hierarchical-context-parallel-sizes",
        lambda a: a.hierarchical_context_parallel_sizes is not None,
        "einops",
        "pip install einops, or leave it out",
    ),
    (
        "--optimizer other than adam and sgd",
        lambda a: a.optimizer not in ("adam", "sgd"),
        "emerging_optimizers",
        "pip install emerging-optimizers, or use adam",
    ),
    ("--enable-ft-package", lambda a: a.enable_ft_package, "nvidia_resiliency_ext", RESILIENCY),
    (
        "--non-persistent-ckpt-type local",
        lambda a: a.non_persistent_ckpt_type == "local",
        "nvidia_resiliency_ext",
        RESILIENCY,
    ),
    ("--replication", lambda a: a.replication, "nvidia_resiliency_ext", RESILIENCY),
    (
        "--fault-injector-ranks",
        lambda a: bool(a.fault_injector_ranks or a.fault_injector_num_ranks),
        "nvidia_resiliency_ext",
        RESILIENCY,
    ),
    (
        "--async-strategy nvrx",
        lambda a: a.async_save and a.async_strategy == "nvrx",
        "nvidia_resiliency_ext",
        "use mcore",
    ),
    ("--adlr-autoresume", lambda a: a.adlr_autoresume, "userlib", "leave it out: it is of NVIDIA's clusters"),
    (
        "--run-workload-inspector-server",
        lambda a: a.run_workload_inspector_server,
        "workload_inspector",
        "leave it out",
    ),
    ("--log-energy", lambda a: a.log_energy, "pynvml", "pip install nvidia-ml-py, or leave it out"),
    (
        "--logits-save-dir",
        lambda a: a.logits_save_dir is not None,
        "zstandard",
        "pip install zstandard, or leave it out",
    ),
    (
        "--wandb-project",
        lambda a: bool(a.wandb_project),
        "wandb",
        "pip install wandb, or leave it out (WANDB_PROJECT in the scripts)",
    ),
)
"""Flag, whether it is given, module, and what to do where that is not there."""


def refuse_missing_modules(args: Namespace) -> None:
    """Check that what flags need is installed; only looked for, not imported.

    Raises:
        ValueError: names the flags, the modules and the remedies.
    """
    missing = [
        f"{flag} needs the Python module {module}, which is not installed: {remedy}"
        for flag, given, module, remedy in NEEDED
        if given(args) and find_spec(module) is None
    ]
    if missing:
        raise ValueError("; ".join(missing))

"""What a run reports beyond Megatron's own log: its variant, tokens/s, FLOPs and MFU by formula."""

import platform
import shlex
import sys
from argparse import Namespace
from enum import Enum
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import torch
from megatron.core import optimizer, parallel_state
from megatron.core.num_microbatches_calculator import get_current_running_global_batch_size
from megatron.core.optimizer import clip_grads

from phd.config import PartialTrainingConfig, PHDConfig
from phd.megatron.documents import documents_masked
from phd.megatron.trainable import EMBEDDING
from phd.megatron.transformer_config import key_value_heads
from phd.rules.costs import Shape, dense_products, expert_products
from phd.rules.pattern import LayerPattern
from phd.rules.variant import LINEAR_LAYERS
from phd.run.arguments import flag
from phd.run.record import MFU, TFLOPS, THROUGHPUT, run_name
from phd.training.mfu import mfu, peak_flops


def describe(args: Namespace, config: PHDConfig) -> str:
    """One line on what starts: the variant, its cost, the machine and the settings chosen for it."""
    text = run_name(vars(args)) + (" on packed documents" if documents_masked(args) else "")
    if args.rope_max_scale:
        text += f" at rotary positions scaled by 1 to {args.rope_max_scale} (E2-LLM)"
    if args.position_gaps_to is not None:
        text += f" with gaps between sentences up to position {args.position_gaps_to} (LongRecipe)"
    if args.train_only is not None:
        text += f" training {args.train_only} alone"
    if args.lora_rank:
        text += f" with adapters of rank {args.lora_rank} (alpha {args.lora_alpha})"
    if config.phd_copies > 1:
        text += f": {config.phd_copies} copies a token, attention backend {config.phd_attention_backend}"
    if torch.cuda.is_available():
        text += f"; {args.world_size} x {torch.cuda.get_device_name()}, {args.transformer_impl} layers"
        if find_spec("transformer_engine") is None:
            text += " (Transformer Engine not found)"
    else:
        text += (
            f"; no GPU found: {args.world_size} CPU rank(s) with {torch.get_num_threads()} thread(s) each "
            f"over {args.distributed_backend}, {args.transformer_impl} layers, no fused kernels"
        )
    return text + "".join(f"; {what} by {library}" for what, library in _served_by(args).items())


def _served_by(args: Namespace) -> dict[str, str]:
    """Which library serves what Megatron takes from Transformer Engine, from apex, or else from torch."""
    names = {"transformer_engine": "Transformer Engine", "apex": "apex", "amp_C": "apex"}
    served = {}
    for what, function in {"Adam": optimizer.Adam, "clipping": clip_grads.l2_norm_impl}.items():
        # a compiled function may have no module
        package = (function.__module__ or "").split(".")[0].removesuffix("_torch")
        served[what] = names.get(package, "torch")
    accumulation = "torch"
    if args.gradient_accumulation_fusion:
        engine = args.transformer_impl == "transformer_engine"
        accumulation = "Transformer Engine" if engine else "apex"
    return served | {"weight-gradient accumulation": accumulation}


def training_flops(args: Namespace, config: PHDConfig) -> float:
    """FLOPs per original token under ``config``; ``args`` are Megatron's, the padded vocabulary known."""
    return config.training_variant.flops_per_token(
        shape_of(args),
        args.seq_length,
        prune_last_layer=config.phd_prune_last_layer,
        frozen=_frozen_layers(args),
    )


def _frozen_layers(args: Namespace) -> list[str]:
    """Of LINEAR_LAYERS those that --train-only leaves as they are."""
    output = "output_layer.weight" if args.untie_embeddings_and_output_weights else EMBEDDING
    attention = [f"self_attention.{name}.weight" for name in LINEAR_LAYERS[:2]]
    names = dict(zip(LINEAR_LAYERS, (*attention, "mlp.linear_fc1.weight", output), strict=True))
    partial = PartialTrainingConfig(train_only=args.train_only)
    return [layer for layer, name in names.items() if not partial.trains(name)]


def shape_of(args: Namespace) -> Shape:
    """The model's shape, with the padded vocabulary known."""
    return Shape(
        hidden_size=args.hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=key_value_heads(args),
        kv_channels=args.kv_channels,
        vocab_size=args.padded_vocab_size,
        mlp_products=_mlp_products(args),
        attention_output_gate=args.attention_output_gate,
        lora_rank=args.lora_rank,
    )


def _gated(args: Namespace) -> bool:
    return args.swiglu or args.quick_geglu


def _mlp_products(args: Namespace) -> list[int]:
    """Multiply-adds of a row in the MLP of each layer."""
    dense = dense_products(args.hidden_size, args.ffn_hidden_size, _gated(args))
    if not args.num_experts:
        return [dense] * args.num_layers
    frequency = args.moe_layer_freq
    if isinstance(frequency, int):
        frequency = [layer % frequency == 0 for layer in range(args.num_layers)]
    experts = expert_products(
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.moe_ffn_hidden_size,
        gated_linear_unit=_gated(args),
        num_experts=args.num_experts,
        topk=args.moe_router_topk,
        shared_ffn_hidden_size=args.moe_shared_expert_intermediate_size or 0,
        shared_gate=args.moe_shared_expert_gate,
        latent_size=args.moe_latent_size,
    )
    return [experts if sparse else dense for sparse in frequency]


class RunMetrics:
    """Tokens, FLOPs and MFU of a run. Tokens are original tokens; FLOPs are the work really done."""

    def __init__(self, args: Namespace, config: PHDConfig) -> None:
        """``args`` are Megatron's, validated and with the tokenizer built (padded vocabulary known)."""
        self.devices = args.world_size
        self.seq_length = args.seq_length
        self.flops_per_token = training_flops(args, config)
        on_gpu = torch.cuda.is_available()
        self.device_name = torch.cuda.get_device_name() if on_gpu else "CPU"
        precision: Literal["bf16", "fp8"] = "bf16" if args.fp8 is None else "fp8"
        self.peak_flops = peak_flops(self.device_name, precision) if on_gpu and args.bf16 else None

    def rates(self, seconds_per_iteration: float) -> dict[str, float]:
        """Tokens per second of all devices, TFLOP/s of each, and MFU where the device's peak is known; at the
        batch size that a schedule has come to.
        """
        tokens_per_second = get_current_running_global_batch_size() * self.seq_length / seconds_per_iteration
        tflops = tokens_per_second * self.flops_per_token / self.devices / 1e12
        rates = {THROUGHPUT: tokens_per_second, TFLOPS: tflops}
        if self.peak_flops is not None:
            rates[MFU] = mfu(
                tokens_per_second=tokens_per_second,
                flops_per_token=self.flops_per_token,
                peak_flops=self.peak_flops * self.devices,
            )
        return rates


def count_parameters(model_chunks: list[torch.nn.Module]) -> int:
    """Parameters of the whole model, from this rank's chunks; every rank of the pipeline group must call
    it.
    """
    total = torch.tensor([stage_parameters(model_chunks)], dtype=torch.long, device="cuda")
    torch.distributed.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
    return int(total)


def stage_parameters(model_chunks: list[torch.nn.Module]) -> int:
    """Parameters of a pipeline stage, its tensor- and expert-parallel ranks together, from one rank's
    chunks.
    """
    return sum(whole_size(parameter) for chunk in model_chunks for parameter in chunk.parameters())


def whole_size(parameter: torch.nn.Parameter) -> int:
    """Elements of a parameter, its tensor- and expert-parallel ranks together."""
    if getattr(parameter, "shared", False):  # the last stage's copy of a tied embedding
        return 0
    return parameter.numel() * _holders(parameter)


def _holders(parameter: torch.nn.Parameter) -> int:
    """Ranks of a pipeline stage that hold each another part of what a parameter is a part of."""
    if getattr(parameter, "allreduce", True):
        tensor_parallel, others = parallel_state.get_tensor_model_parallel_world_size(), 1
    else:  # an expert's, where experts have process groups of their own
        tensor_parallel = parallel_state.get_expert_tensor_parallel_world_size()
        others = parallel_state.get_expert_model_parallel_world_size()
    return others * (tensor_parallel if getattr(parameter, "tensor_model_parallel", False) else 1)


def about_run(args: Namespace, config: PHDConfig, metrics: RunMetrics, parameters: int) -> dict[str, Any]:
    """What phd_run.json says: the variant, its costs, and every argument."""
    return {
        "name": run_name(vars(args)),
        "copies": config.phd_copies,
        "window": config.phd_window,
        "chunk": config.phd_chunk,
        "naive": config.phd_naive,
        "consecutive_positions": config.phd_consecutive_positions,
        "copy_embedding": config.phd_copy_embedding,
        "pattern": str(LayerPattern.of(tuple(rule.keys for rule in config.layers(args.num_layers)))),
        "seed": args.seed,
        "seq_length": args.seq_length,
        "global_batch_size": args.global_batch_size,
        "train_iters": args.train_iters,
        "parameters": parameters,
        "flops_per_token": metrics.flops_per_token,
        "flops_over_vanilla": metrics.flops_per_token / training_flops(args, PHDConfig()),
        "device": metrics.device_name,
        "world_size": args.world_size,
        "command": shlex.join(sys.argv),
        "versions": {name: version(name) for name in ("torch", "megatron-core")}
        | {"python": platform.python_version()},
        "arguments": recorded(args),
    }


def recorded(args: Namespace) -> dict[str, Any]:
    """Every argument that JSON has a way to say.

    Types and enumerations only as flags give them: else they follow from other arguments and the machine, and
    `phd compare` would hold them against the runs that older code recorded without.
    """
    given = {word.partition("=")[0] for word in sys.argv}
    derived = {
        name
        for name, value in vars(args).items()
        if isinstance(value, (torch.dtype, Enum)) and flag(name) not in given
    }
    return {name: value for name, value in plain_arguments(args).items() if name not in derived}


def plain_arguments(args: Namespace) -> dict[str, Any]:
    """Every argument that JSON can represent, in alphabetical order."""
    plain = {name: _plain(value) for name, value in sorted(vars(args).items())}
    kinds = (bool, int, float, str, list, type(None))
    return {name: value for name, value in plain.items() if isinstance(value, kinds)}


def _plain(value: Any) -> Any:
    """``value`` as JSON has it, where there is a way."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, torch.dtype):
        return str(value)
    return value.name if isinstance(value, Enum) else value

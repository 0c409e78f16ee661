"""`phd plan`: what a command line of pretrain_phd.py will need, before anyone queues it.

The model is built and one step is run with tensors that have shapes and no memory (torch's FakeTensorMode) in
a process group without processes, so every flag, layout and recomputation counts as it will run; torch's
MemTracker adds up what is alive. Weights, gradients and optimizer state follow from the parameters.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phd.config import PHDConfig
from phd.quiet import quiet
from phd.rules.pattern import LayerPattern
from phd.rules.variant import Variant

if TYPE_CHECKING:
    from phd.megatron.builder import PHDModelConfig
    from phd.megatron.transformer_config import PHDTransformerConfig

GIB = 2**30


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one rank of a pipeline stage."""

    stage: int
    layers: int
    parameters: int
    """Of the stage, its tensor-parallel ranks together; not counted: a tied embedding's second copy."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Largest sum of what is alive beside the above, of all micro batches in flight."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=int, help="ranks of the whole job (default: one replica of the model, TP * PP * CP)"
    )
    parser.add_argument(
        "--on",
        choices=("gpu", "cpu"),
        default="gpu",
        help="gpu: flash attention for the vanilla model too, fused SwiGLU; cpu: as it runs on a CPU",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument(
        "line", nargs=argparse.REMAINDER, metavar="pretrain_phd.py FLAG ...", help="as for training"
    )


def run(options: Namespace) -> int:
    names = [Path(word).name for word in options.line]
    if "pretrain_phd.py" not in names:
        raise ValueError("give the command line: phd plan [OPTION ...] pretrain_phd.py FLAG ...")
    flags = options.line[names.index("pretrain_phd.py") + 1 :]
    plan = make_plan(flags, ranks=options.ranks, on=options.on)
    print(describe_plan(plan))
    if options.json:
        options.json.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    return 0


def make_plan(flags: list[str], *, ranks: int | None = None, on: str = "gpu") -> dict[str, Any]:
    """Everything that `phd plan` prints, as numbers: bytes, FLOPs, tokens.

    Args:
        flags: of pretrain_phd.py.
        ranks: of the whole job; None for one replica.
        on: "gpu" or "cpu".

    Raises:
        ValueError: a flag is bad, or ``ranks`` is not a multiple of a replica.
    """
    with quiet(), _environment():
        from phd.megatron import compat
        from phd.megatron.builder import model_config_from_args
        from phd.training.metrics import RunMetrics, shape_of, training_flops

        args = _parse(flags, ranks)
        if args.optimizer != "adam":
            raise ValueError(f"--optimizer {args.optimizer}: phd plan knows adam")
        if args.fp16:
            raise ValueError("--fp16: phd plan knows --bf16 and fp32")
        if args.num_experts is not None:
            raise ValueError(
                "--num-experts: how many rows an expert gets depends on the data; not planned yet"
            )
        _run_local(args, on)
        config = model_config_from_args(args)
        if on == "gpu":
            config.transformer.phd_documents = True  # puts our flash attention into the vanilla model
        compat.apply(args.phd_copies)
        stages = all_stages(args, config)
        metrics = RunMetrics(args, config.transformer)
        vanilla_flops = training_flops(args, PHDConfig())
        shape = shape_of(args)

    transformer = config.transformer
    variant = transformer.variant
    layers = LayerPattern.of(tuple(rule.keys for rule in transformer.layers(args.num_layers)))
    return {
        "variant": str(variant),
        "pattern": str(layers) if layers.sparse else None,
        "parameters": sum(stage.parameters for stage in stages),
        "layout": {
            "ranks": args.world_size,
            "TP": args.tensor_model_parallel_size,
            "PP": args.pipeline_model_parallel_size,
            "CP": args.context_parallel_size,
            "DP": args.data_parallel_size,
        },
        "stages": [asdict(stage) | {"total": stage.total} for stage in stages],
        "tokens_per_iteration": args.global_batch_size * args.seq_length,
        "iterations": args.train_iters,
        "flops_per_token": metrics.flops_per_token,
        "flops_to_vanilla": metrics.flops_per_token / vanilla_flops,
        "seq_length": args.seq_length,
        "kv_bytes": variant.kv_cache_bytes(shape, args.seq_length, 2),
        "vanilla_kv_bytes": Variant().kv_cache_bytes(shape, args.seq_length, 2),
        "busiest_rank": _busiest_rank(transformer, args.seq_length),
        "on": on,
    }


def _busiest_rank(transformer: "PHDTransformerConfig", seq_length: int) -> float:
    """Pairs of a query and a key on the tensor-parallel rank that has the most, to their mean: more than 1
    where its heads keep more than others' do.
    """
    pairs = [
        sum(rule.visible_pairs(seq_length) for rule in transformer.layers_on_rank(rank))
        for rank in range(transformer.tensor_model_parallel_size)
    ]
    return max(pairs) * len(pairs) / sum(pairs)


def describe_plan(plan: dict[str, Any]) -> str:
    """``make_plan``'s numbers for people."""
    layout = ", ".join(f"{name} {size}" for name, size in plan["layout"].items() if name != "ranks")
    per_iteration = plan["tokens_per_iteration"] * plan["flops_per_token"]
    lines = [
        f"{plan['variant']}: {plan['parameters']:,} parameters"
        + (f", layers {plan['pattern']}" if plan["pattern"] else ""),
        f"Training FLOPs: {plan['flops_per_token']:.4g} a token ({plan['flops_to_vanilla']:.3f} x vanilla), "
        f"{per_iteration:.4g} an iteration of {plan['tokens_per_iteration']:,} tokens",
        f"KV cache of a decoded sequence at {plan['seq_length']:,} positions, bf16: "
        f"{plan['kv_bytes']:,} bytes (vanilla {plan['vanilla_kv_bytes']:,})",
    ]
    if plan["iterations"]:
        tokens = plan["iterations"] * plan["tokens_per_iteration"]
        lines[1] += f", {tokens * plan['flops_per_token']:.4g} in all ({tokens:,} tokens)"
    lines += [
        f"Memory of a rank in GiB ({plan['layout']['ranks']} ranks: {layout}):",
        f"{'stage':>5} {'layers':>7} {'weights':>9} {'gradients':>10} {'optimizer':>10} {'activations':>12} "
        f"{'total':>9}",
    ]
    for stage in plan["stages"]:
        columns = (
            stage[name] / GIB for name in ("weights", "gradients", "optimizer", "activations", "total")
        )
        numbers = "{:9.3f} {:10.3f} {:10.3f} {:12.3f} {:9.3f}".format(*columns)
        lines.append(f"{stage['stage']:>5} {stage['layers']:>7} {numbers}")
    if plan["busiest_rank"] > 1.005:
        lines.append(
            "Heads differ: of the ranks of tensor parallelism the busiest computes "
            f"{plan['busiest_rank']:.2f} times the mean of their attention, and the others wait for it"
        )
    if plan["on"] == "gpu":
        lines.append(
            "Activations are counted with Megatron's local layers and fused SwiGLU; Transformer Engine's\n"
            "have not been measured against this yet. CUDA's own context and NCCL come on top."
        )
    lines.append("Step time: unmeasured (no committed measurement of such a run)")
    return "\n".join(lines)


def all_stages(args: Namespace, config: "PHDModelConfig") -> list[StageMemory]:
    """Memory of a rank of each pipeline stage."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return [stage_memory(args, config, stage) for stage in range(args.pipeline_model_parallel_size)]


def stage_memory(args: Namespace, config: "PHDModelConfig", stage: int) -> StageMemory:
    """Memory of a rank of one pipeline stage; called with fake tensors on."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    from phd.megatron.builder import PHDModelBuilder
    from phd.training.metrics import stage_parameters

    with _fake_ranks(args, stage):
        groups = ProcessGroupCollection.use_mpu_process_groups()
        chunks = []
        for vp_stage in range(args.virtual_pipeline_model_parallel_size or 1):
            virtual = vp_stage if args.virtual_pipeline_model_parallel_size else None
            edges = (
                parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=virtual),
                parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=virtual),
            )
            with _default_dtype(torch.bfloat16 if args.bf16 else torch.float32):
                chunks.append(PHDModelBuilder(config).build_model(groups, *edges, vp_stage=virtual))
        activations = _activations(args, chunks, stage)
        whole = stage_parameters(chunks)
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    gradient_bytes = 4 if args.accumulate_allreduce_grads_in_fp32 or not args.bf16 else 2
    replicas = args.data_parallel_size * args.context_parallel_size if args.use_distributed_optimizer else 1
    count = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    optimizer = count * _optimizer_bytes(args) // replicas
    layers = sum(len(chunk.decoder.layers) for chunk in chunks)
    return StageMemory(stage, layers, whole, weights, count * gradient_bytes, optimizer, activations)


def _activations(args: Namespace, chunks: list[Any], stage: int) -> int:
    """Peak bytes beside the weights while the micro batches in flight have run forward and the first of them
    runs backward.
    """
    import torch
    from torch.distributed._tools.mem_tracker import MemTracker

    length = args.seq_length // args.context_parallel_size
    rows = length // (args.tensor_model_parallel_size if args.sequence_parallel else 1)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    for chunk in chunks:
        for parameter in chunk.parameters():
            if parameter.requires_grad:
                # Megatron adds each gradient to its buffer and drops it
                parameter.register_post_accumulate_grad_hook(_drop_gradient)

    def forward(chunk: Any) -> torch.Tensor:
        tokens = torch.zeros(args.micro_batch_size, length, dtype=torch.long)
        if not chunk.pre_process:
            shape = (rows, args.micro_batch_size * args.phd_copies, args.hidden_size)
            chunk.set_input_tensor(torch.empty(shape, dtype=dtype, requires_grad=True))
        out = chunk(tokens, tokens, None, labels=tokens)
        return out.mean() if chunk.post_process else out

    kept, peaks = [], []
    for chunk in chunks:
        tracker = MemTracker()
        tracker.track_external(*chunks)
        with tracker:
            out = forward(chunk)
            kept.append(_beside_weights(tracker.get_tracker_snapshot("current")))
            if out.requires_grad:  # or all that came before is frozen
                out.backward(None if out.dim() == 0 else torch.empty_like(out))
        peaks.append(_beside_weights(tracker.get_tracker_snapshot("peak")))
        del out
    return (_passes_in_flight(args, stage) - 1) * max(kept) + max(peaks)


def _beside_weights(snapshot: dict) -> int:
    """Bytes of a MemTracker's snapshot without parameters and buffers."""
    (sizes,) = snapshot.values()
    weights = ("PARAM", "BUFFER", "Total")
    return sum(size for kind, size in sizes.items() if str(kind).rsplit(".")[-1] not in weights)


def _passes_in_flight(args: Namespace, stage: int) -> int:
    """Forward passes of a model chunk whose activations a stage holds at its peak (1F1B, interleaved too)."""
    stages, chunks = args.pipeline_model_parallel_size, args.virtual_pipeline_model_parallel_size or 1
    micro_batches = args.global_batch_size // (args.micro_batch_size * args.data_parallel_size)
    if chunks == 1:
        return min(micro_batches, stages - stage)
    return min(micro_batches * chunks, 2 * (stages - stage - 1) + (chunks - 1) * stages + 1)


def _optimizer_bytes(args: Namespace) -> int:
    """Of Adam's state for a parameter: two moments, and the fp32 copy of a bf16 parameter."""
    import torch

    size = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2, torch.uint8: 1, None: 4}
    return size[args.exp_avg_dtype] + size[args.exp_avg_sq_dtype] + (4 if args.bf16 else 0)


def _drop_gradient(parameter: Any) -> None:
    parameter.grad = None


def _parse(flags: list[str], ranks: int | None) -> Namespace:
    """Megatron's arguments, validated, for a job of ``ranks`` ranks."""
    from phd.training.arguments import parse_for_tool

    sizes = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("tensor", "pipeline"):
        sizes.add_argument(f"--{name}-model-parallel-size", type=int, default=1)
    sizes.add_argument("--context-parallel-size", type=int, default=1)
    given, _ = sizes.parse_known_args(flags)
    replica = (
        given.tensor_model_parallel_size * given.pipeline_model_parallel_size * given.context_parallel_size
    )
    if ranks is not None and (ranks < 1 or ranks % replica):
        raise ValueError(f"--ranks must be a multiple of {replica} (TP * PP * CP), got {ranks}")
    sys.argv = ["pretrain_phd.py", *flags]
    log = io.StringIO()
    try:
        with contextlib.redirect_stderr(log):
            return parse_for_tool(ranks or replica)
    except SystemExit as stop:
        raise ValueError(log.getvalue().strip().rsplit("error: ")[-1]) from stop


def _run_local(args: Namespace, on: str) -> None:
    """Layers that run without Transformer Engine, which is not needed to know shapes."""
    args.transformer_impl = "local"
    for name in ("gradient_accumulation_fusion", "masked_softmax_fusion", "apply_rope_fusion"):
        setattr(args, name, False)
    args.persist_layer_norm = False
    if on == "gpu":
        args.bias_swiglu_fusion = args.swiglu


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Hide the GPUs, and leave the environment and the command line as they were.

    On a GPU Megatron makes the weights there, also fake ones, and what meets them is on the CPU; without one
    phd.megatron, imported in here, prepares torch so that both are.
    """
    environment, argv = dict(os.environ), sys.argv
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = argv


@contextlib.contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """For the norms' weights: a fake tensor cannot be converted in place, as Megatron does with a model."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _fake_ranks(args: Namespace, stage: int) -> Iterator[None]:
    """Process groups of the whole job, seen by the first rank of a pipeline stage; nothing is sent."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import initialize_rng_tracker
    from torch.testing._internal.distributed.fake_pg import FakeStore

    rank = stage * (args.world_size // args.pipeline_model_parallel_size)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=args.world_size)
    try:
        parallel_state.initialize_model_parallel(
            args.tensor_model_parallel_size,
            args.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
            context_parallel_size=args.context_parallel_size,
            create_gloo_process_groups=False,
        )
        # one that leaves the generators alone: their states are real tensors
        initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
        yield
    finally:
        initialize_rng_tracker(force_reset=True)
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()

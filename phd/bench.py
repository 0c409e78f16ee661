"""`phd bench latency`: time to read a prompt and time of a step against K, the paper's Figure 9.

Vanilla, naive repetition, PHD-SWA and PHD-CSWA, and LongGen's hybrids of K = 1, random weights, one sample,
in one run: rounds in turns, so that what disturbs one disturbs all. Vanilla is K = 1 of the same code.
Attention never takes cuDNN (phd/timing.py says why).
"""

import argparse
import json
import os
import platform
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from phd.accounting import visible_pairs

if TYPE_CHECKING:
    import torch

    from phd.attention.pattern import LayerPatterns
    from phd.hf import PHDCache, PHDLlamaConfig

Model = Any
"""A PHDLlamaForCausalLM; transformers' own annotations do not pass mypy."""

WINDOW, CHUNK = 16, 32
SHAPES: dict[str, dict[str, Any]] = {
    # layers, hidden, FFN, heads, groups, vocabulary
    "small": {"num_hidden_layers": 4, "hidden_size": 768, "intermediate_size": 2048,
              "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 8192},
    # the paper's 550M: its FFN of 8192 counts gate and up together
    "550m": {"num_hidden_layers": 16, "hidden_size": 1536, "intermediate_size": 4096,
             "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 100352},
}  # fmt: skip
STYLES = ("naive", "PHD-SWA", "PHD-CSWA")
HYBRIDS = ("longgen-sink", "longgen-block")
"""LongGen's, with its own blocks: 64 tokens, 1 + 32 kept or every 64th + 1."""


@dataclass(frozen=True)
class Variant:
    """One line of the figure."""

    style: str
    copies: int

    @property
    def name(self) -> str:
        return {
            "vanilla": "vanilla",
            "naive": f"naive-{self.copies}",
            "PHD-SWA": f"PHD-SWA-{self.copies}-{WINDOW}-inf",
            "PHD-CSWA": f"PHD-CSWA-{self.copies}-{WINDOW}-{CHUNK}",
        }.get(self.style, self.style)

    def patterns(self, layers: int) -> "LayerPatterns":
        """Of each layer; None where it is full attention."""
        from phd.config import PHDConfig

        pattern = self.style if self.style in HYBRIDS else "full"
        return PHDConfig(attention_pattern=pattern).patterns(layers)

    def hidden_columns(self, length: int, layers: int) -> int:
        """Columns whose hidden tokens a prompt of ``length`` runs."""
        if self.style == "PHD-CSWA":
            return (length - 1) % CHUNK + 1
        return min(length, layers * (WINDOW - 1) + 1) if self.style == "PHD-SWA" else 0


VANILLA = Variant("vanilla", 1)


def chosen(args: Namespace, copies: list[int], length: int) -> list[Variant]:
    """Vanilla, and what the command line asks for after so many tokens."""
    variants = [Variant(style, 1) for style in HYBRIDS]
    variants += [Variant(style, count) for count in copies for style in STYLES]
    # a prompt of K tokens for each is read K times as slowly, and its attention K x K times
    fits = [v for v in variants if v.style != "naive" or v.copies * length <= args.naive_tokens]
    return [VANILLA, *(v for v in fits if v.style in args.styles)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`phd bench` has one subcommand so far."""
    commands = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    summary = "time to read a prompt and time of a step against K (the paper's Figure 9)"
    latency = commands.add_parser("latency", help=summary, description=__doc__)
    latency.add_argument("--shape", choices=SHAPES, help="default: small on a CPU, 550m on a GPU")
    latency.add_argument(
        "--styles", nargs="+", choices=[*STYLES, *HYBRIDS], default=[*STYLES, *HYBRIDS], metavar="STYLE",
        help=f"beside vanilla; default: {' '.join((*STYLES, *HYBRIDS))}",
    )  # fmt: skip
    latency.add_argument("--prompts", type=int, nargs="+", default=[2048, 8192], help="lengths, in tokens")
    latency.add_argument("--prefill-copies", type=int, nargs="+", default=[2, 4, 8, 16], metavar="K")
    latency.add_argument("--decode-copies", type=int, nargs="+", default=[2, 4, 8, 16, 64, 256], metavar="K")
    latency.add_argument("--context", type=int, default=2048, help="tokens in the cache of a step")
    latency.add_argument("--rounds", type=int, default=5)
    latency.add_argument("--steps", type=int, default=8, help="steps of a round")
    latency.add_argument(
        "--naive-tokens", type=int, default=32768, help="leave out naive repetition of longer prompts"
    )
    latency.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU if there is one")
    latency.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on a CPU")
    latency.add_argument("--output", type=Path, help="JSON file to write, and a PNG beside it")


def run(args: Namespace) -> int:
    """Measure, print two tables, write JSON and plot."""
    from phd.loading import chosen_device
    from phd.timing import steady

    counts = {name: [getattr(args, name)] for name in ("rounds", "steps", "context")}
    counts |= {name: getattr(args, name) for name in ("prompts", "prefill_copies", "decode_copies")}
    for name, values in counts.items():
        if min(values) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {min(values)}")
    device = chosen_device(args.device)
    with steady(device):
        base, report = prepare(args, device)
        report["prefill"] = [row for length in args.prompts for row in prefill(base, length, args)]
        report["decode"] = decode(base, args, report, graphed=False)
        if device.type == "cuda":
            report["decode"] += decode(base, args, report, graphed=True)
    print_tables(report)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        plot(report, args.output.with_suffix(".png"))
        print(f"Written to {args.output} and {args.output.with_suffix('.png')}")
    return 0


def prepare(args: Namespace, device: "torch.device") -> tuple[Model, dict[str, Any]]:
    """The vanilla model, whose weights all variants share, and what the report says before the numbers."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    dtype = getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    shape = args.shape or ("small" if device.type == "cpu" else "550m")
    report: dict[str, Any] = {
        "command": shlex.join(["phd", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "load_average_at_start": os.getloadavg()[0],
        },
        "shape": {"name": shape, **SHAPES[shape]},
        "dtype": str(dtype),
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        **machine_limits(device, dtype),
    }
    return make_model(shape, VANILLA, device, dtype), report


def make_model(
    shape: str, variant: Variant, device: "torch.device", dtype: "torch.dtype", like: Any = None
) -> Model:
    """Random weights, or those of ``like``: all variants share them."""
    import torch

    from phd.hf import PHDLlamaForCausalLM

    config = model_config(shape, variant)
    if like is None:
        return random_model(config, device, dtype)
    with torch.device("meta"):
        model: Model = PHDLlamaForCausalLM(config)
    model.load_state_dict(like.state_dict(), assign=True)
    model.tie_weights()
    model.model.rotary_emb = like.model.rotary_emb
    return model.eval()


def model_config(shape: str, variant: Variant) -> "PHDLlamaConfig":
    from phd.hf import PHDLlamaConfig
    from phd.hf.configuration import stored_patterns

    style = variant.style
    return PHDLlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=1 << 20,
        phd_copies=variant.copies if style in ("PHD-SWA", "PHD-CSWA") else 1,
        phd_window=WINDOW,
        phd_chunk=CHUNK if style == "PHD-CSWA" else None,
        phd_patterns=stored_patterns(variant.patterns(SHAPES[shape]["num_hidden_layers"])),
        tie_word_embeddings=True,
    )


def random_model(config: "PHDLlamaConfig", device: "torch.device", dtype: "torch.dtype") -> Model:
    """The same weights at every call, in eval mode."""
    import torch

    from phd.hf import PHDLlamaForCausalLM

    torch.manual_seed(0)
    with device:
        model: Model = PHDLlamaForCausalLM(config)
        model.to(dtype)
        # its buffers are computed, and fp32 whatever the weights are
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def shape_of(base: Model) -> str:
    return next(name for name, shape in SHAPES.items() if shape["hidden_size"] == base.config.hidden_size)


def of(base: Model, variant: Variant) -> Model:
    """``base``'s weights as ``variant``."""
    return make_model(shape_of(base), variant, base.device, base.dtype, like=base)


def machine_limits(device: "torch.device", dtype: "torch.dtype") -> dict[str, float]:
    """What this machine reaches: a large matrix product, and reading memory that no cache holds."""
    import torch

    from phd.timing import in_turns

    # a GPU reads 268 MB in less time than it takes to launch and wait
    size, count = (2048, 1 << 28) if device.type == "cpu" else (8192, 1 << 31)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    big = torch.ones(count // dtype.itemsize, device=device, dtype=dtype)
    calls = {"product": lambda: torch.mm(a, b, out=out), "read": lambda: big.sum()}
    best = {name: min(times) for name, times in in_turns(calls, 5, device).items()}
    return {"flop_per_second": 2 * size**3 / best["product"], "bytes_per_second": big.nbytes / best["read"]}


def to_rows(times: dict[Variant, list[float]], **common: Any) -> list[dict[str, Any]]:
    """Times and the median over the rounds of their ratio to vanilla's."""
    vanilla = times[VANILLA]
    return [
        {
            "variant": variant.name,
            "style": variant.style,
            "copies": variant.copies,
            **common,
            "seconds": values,
            "ratio": median(a / b for a, b in zip(values, vanilla, strict=True)),
        }
        for variant, values in times.items()
    ]


def prefill(base: Model, length: int, args: Namespace) -> list[dict[str, Any]]:
    """Time from a prompt to the logits of its last token and a cache that is ready for the next."""
    import torch

    from phd.timing import in_turns

    ids = torch.randint(0, base.config.vocab_size, (1, length), device=base.device)
    variants = chosen(args, args.prefill_copies, length)
    calls = {variant: _prompt(of(base, variant), ids, variant) for variant in variants}
    with torch.inference_mode():
        rows = to_rows(in_turns(calls, args.rounds, base.device, repeats=1), prompt=length)
    for row, variant in zip(rows, variants, strict=True):
        hidden = variant.hidden_columns(length, base.config.num_hidden_layers)
        flop = _prompt_flop(base, length, variant, hidden) / _prompt_flop(base, length, VANILLA, 0)
        if variant.style in HYBRIDS:
            floor = flop
        else:
            floor = variant.copies if variant.style == "naive" else 1 + (variant.copies - 1) * hidden / length
        row |= {"floor": floor, "times_floor": row["ratio"] / floor, "flop_ratio": flop}
    return rows


def _prompt_flop(base: Model, length: int, variant: Variant, hidden: int) -> int:
    """Multiplications and additions of all layers, attention as the rule has it but for the small band."""
    config = base.config
    products = sum(x.numel() for name, x in base.named_parameters() if ".layers." in name and x.dim() == 2)
    tokens = length * (variant.copies if variant.style == "naive" else 1)
    rows = hidden * (variant.copies - 1)
    pairs = sum(
        visible_pairs(tokens, pattern=pattern) + rows * (length - hidden // 2)
        for pattern in variant.patterns(config.num_hidden_layers)
    )
    width = config.num_attention_heads * config.head_dim
    return 2 * products * (tokens + rows) + 4 * width * pairs


def _prompt(model: Model, ids: "torch.Tensor", variant: Variant) -> Callable[[], Any]:
    if variant.style == "naive":
        ids = ids.repeat_interleave(variant.copies, dim=1)
    return lambda: model(ids, logits_to_keep=1, use_cache=True)


def decode(base: Model, args: Namespace, report: dict[str, Any], *, graphed: bool) -> list[dict[str, Any]]:
    """Time of one step after a context: as generate calls it, or as a CUDA graph, which needs a static cache.

    Args:
        report: has ``machine_limits``.
    """
    import torch

    from phd.timing import in_turns

    calls, sizes = {}, {}
    variants = chosen(args, args.decode_copies, args.context)
    with torch.inference_mode():
        for variant in variants:
            if graphed and variant.style in ("naive", *HYBRIDS):
                continue
            model = of(base, variant)
            repeats = variant.copies if variant.style == "naive" else 1
            room = args.context + args.steps * (args.rounds + 4)
            cache = filled_cache(model, args.context * repeats, room if graphed else None)
            sizes[variant] = cache.nbytes()
            step = _graph(model, cache) if graphed else _step(model, cache, repeats)
            calls[variant] = _several(step, args.steps)
        times = in_turns(calls, args.rounds, base.device, repeats=1)
    a_step = {variant: [value / args.steps for value in values] for variant, values in times.items()}
    floors = {variant: step_floor(base, variant, args.context, report) for variant in calls}
    rows = to_rows(a_step, context=args.context, graphed=graphed)
    for row, variant in zip(rows, calls, strict=True):
        floor = floors[variant]
        row |= {"kv_bytes": sizes[variant], "floor_seconds": floor, "floor_ratio": floor / floors[VANILLA]}
        row["times_floor"] = median(row["seconds"]) / floor
    return rows


def step_floor(base: Model, variant: Variant, context: int, report: dict[str, Any]) -> float:
    """Seconds that computing or reading take, whichever is longer. The mean over a chunk from ``context`` on,
    in which PHD-CSWA's hidden keys grow from none to a window and drop to none.
    """
    from phd.hf.cache import kv_bytes

    config = model_config(shape_of(base), variant)
    weights = sum(x.nbytes for x in base.parameters())
    tokens = variant.copies if variant.style == "naive" else 1
    return fmean(
        max(
            _step_flop(base, variant, position) / report["flop_per_second"],
            (weights + kv_bytes(config, position * tokens, element_size=base.dtype.itemsize))
            / report["bytes_per_second"],
        )
        for position in range(context, context + CHUNK)
    )


def _step_flop(base: Model, variant: Variant, position: int) -> int:
    """Multiplications and additions of a step at a position, attention as the rule has it."""
    config, copies = base.config, variant.copies
    rule: dict[str, Any] = {"copies": copies, "naive": variant.style == "naive"}
    if variant.style in ("PHD-SWA", "PHD-CSWA"):
        rule |= {"window": WINDOW, "chunk": CHUNK if variant.style == "PHD-CSWA" else None}
    pairs = sum(
        visible_pairs(position + 1, pattern=pattern, **rule)
        - visible_pairs(position, pattern=pattern, **rule)
        for pattern in variant.patterns(config.num_hidden_layers)
    )
    products = sum(x.numel() for name, x in base.named_parameters() if x.dim() == 2 and "embed" not in name)
    head, width = config.vocab_size * config.hidden_size, config.num_attention_heads * config.head_dim
    return 2 * (copies * products + head) + 4 * width * pairs


def _several(step: Callable[[], Any], count: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(count):
            step()

    return call


def filled_cache(model: Model, length: int, room: int | None) -> "PHDCache":
    """A cache of random numbers, as after a prompt of ``length`` tokens; the time of a step is the same."""
    import torch

    from phd.hf import PHDCache

    config = model.config
    cache = PHDCache(config, max_cache_len=room)
    heads = (1, config.num_key_value_heads)
    options: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    columns = config.phd_window - 1
    if config.phd_chunk is not None:
        columns = min(columns, length % config.phd_chunk)
    for index in range(config.num_hidden_layers):
        keys, values = (torch.randn(*heads, length, config.head_dim, **options) for _ in range(2))
        cache.update(keys, values, index)
        if config.phd_copies > 1:
            shape = (*heads, columns * (config.phd_copies - 1), config.head_dim)
            keys, values = (torch.randn(shape, **options) for _ in range(2))
            cache.keep_hidden(index, keys, values, columns, length)
    cache.append_ids(torch.zeros(1, length, dtype=torch.long, device=model.device), 0)
    return cache


def _step(model: Model, cache: "PHDCache", repeats: int) -> Callable[[], Any]:
    import torch

    ids = torch.zeros(1, repeats, dtype=torch.long, device=model.device)
    return lambda: model(ids, past_key_values=cache, logits_to_keep=1)


def _graph(model: Model, cache: "PHDCache") -> Callable[[], Any]:
    """A step captured once and replayed: no launches from Python. (Has not been run on a GPU yet.)"""
    import torch

    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    stream = torch.cuda.Stream()  # of the current device: ``steady`` makes it the model's
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            model(ids, past_key_values=cache, logits_to_keep=1)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(ids, past_key_values=cache, logits_to_keep=1)

    def replay(inputs: Any = ids) -> None:  # every replay reads them: their memory is not the graph's own
        graph.replay()

    return replay


def print_tables(report: dict[str, Any]) -> None:
    """Both halves of the figure as text."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110)
    table = Table(title="Prefill")
    for name in ("prompt", "variant", "ms", "times vanilla", "floor", "times its floor", "FLOPs"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in report["prefill"]:
        numbers = [f"{row[key]:.3f}" for key in ("ratio", "floor", "times_floor", "flop_ratio")]
        table.add_row(str(row["prompt"]), row["variant"], f"{median(row['seconds']) * 1e3:.1f}", *numbers)
    console.print(table)
    table = Table(title=f"A step after {report['decode'][0]['context']} tokens")
    for name in ("variant", "graph", "ms", "times vanilla", "times its floor", "KV bytes"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in report["decode"]:
        numbers = [f"{row['ratio']:.3f}", f"{row['times_floor']:.2f}", f"{row['kv_bytes']:,}"]
        graph = "yes" if row["graphed"] else ""
        table.add_row(row["variant"], graph, f"{median(row['seconds']) * 1e3:.2f}", *numbers)
    console.print(table)


def plot(report: dict[str, Any], file: Path) -> None:
    """Figure 9: prefill and decode against K."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    prompts = sorted({row["prompt"] for row in report["prefill"]})
    figure, axes = pyplot.subplots(1, len(prompts) + 1, figsize=(4 * len(prompts) + 4, 3.6), layout="tight")
    panels = [
        (f"prefill, {prompt} tokens", [row for row in report["prefill"] if row["prompt"] == prompt])
        for prompt in prompts
    ]
    panels.append(("a step", report["decode"]))
    for axis, (title, rows) in zip(axes, panels, strict=True):
        for style in STYLES:
            for graphed in (False, True):
                line = [r for r in rows if r["style"] == style and r.get("graphed", False) == graphed]
                if line:
                    label = f"{style}, CUDA graph" if graphed else style
                    points = [1, *(r["copies"] for r in line)], [1, *(r["ratio"] for r in line)]
                    axis.plot(*points, marker="o", label=label)
        axis.axhline(1, color="black", linewidth=0.8, label="vanilla")
        axis.set(title=title, xlabel="K", xscale="log", yscale="log", ylabel="times vanilla")
        ticks = sorted({1, *(row["copies"] for row in rows)})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)

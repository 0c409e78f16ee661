"""Time to read a prompt and time of a step against K, the paper's Figure 9.

    python -m benchmarks.latency                # 4 layers of 768 on a CPU, the 550M on a GPU; prints only
    python -m benchmarks.latency --output FILE  # writes a JSON file, and a plot beside it

Vanilla, naive repetition, PHD-SWA and PHD-CSWA, and LongGen's hybrids of K = 1, random weights, one sample,
in one run: rounds in turns, so that what disturbs one disturbs all. Vanilla is K = 1 of the same code.
Attention never takes cuDNN (benchmarks/timing.py says why).
"""

import sys
from pathlib import Path

# The folder of this file holds a tokenize.py, and the standard library must go on finding its own.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import os
import platform
import shlex
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean, median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from benchmarks.timing import in_turns, steady
from phd.hf import PHDCache, PHDLlamaConfig, PHDLlamaForCausalLM
from phd.hf.convert import attention_shape
from phd.loading import chosen_device
from phd.rules.copies import Copies
from phd.rules.variant import Variant

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
class Line:
    """One line of the figure."""

    style: str
    copies: int

    @property
    def variant(self) -> Variant:
        if self.style in HYBRIDS:
            return Variant.parse(self.style)
        naive = self.style == "naive" and self.copies > 1
        return Variant(Copies(self.copies, WINDOW, CHUNK if self.style == "PHD-CSWA" else None, naive))

    def hidden_columns(self, length: int, layers: int) -> int:
        """Number of slots whose hidden copies a prompt of ``length`` runs."""
        if self.style == "PHD-CSWA":
            return (length - 1) % CHUNK + 1
        return min(length, layers * (WINDOW - 1) + 1) if self.style == "PHD-SWA" else 0


VANILLA = Line("vanilla", 1)


def chosen(args: Namespace, copies: list[int], length: int) -> list[Line]:
    """Vanilla, and what the command line asks for after so many tokens."""
    lines = [Line(style, 1) for style in HYBRIDS]
    lines += [Line(style, count) for count in copies for style in STYLES]
    # a prompt of K tokens for each is read K times as slowly, and its attention K x K times
    fits = [v for v in lines if v.style != "naive" or v.copies * length <= args.naive_tokens]
    return [VANILLA, *(v for v in fits if v.style in args.styles)]


def parse(arguments: list[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, help="default: small on a CPU, 550m on a GPU")
    parser.add_argument(
        "--styles", nargs="+", choices=[*STYLES, *HYBRIDS], default=[*STYLES, *HYBRIDS], metavar="STYLE",
        help=f"beside vanilla; default: {' '.join((*STYLES, *HYBRIDS))}",
    )  # fmt: skip
    parser.add_argument("--prompts", type=int, nargs="+", default=[2048, 8192], help="lengths, in tokens")
    parser.add_argument("--prefill-copies", type=int, nargs="+", default=[2, 4, 8, 16], metavar="K")
    parser.add_argument("--decode-copies", type=int, nargs="+", default=[2, 4, 8, 16, 64, 256], metavar="K")
    parser.add_argument("--context", type=int, default=2048, help="tokens in the cache of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps of a round")
    parser.add_argument(
        "--naive-tokens", type=int, default=32768, help="leave out naive repetition of longer prompts"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU if there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on a CPU")
    parser.add_argument("--output", type=Path, help="JSON file to write, and a PNG beside it")
    args = parser.parse_args(arguments)
    counts = {name: [getattr(args, name)] for name in ("rounds", "steps", "context")}
    counts |= {name: getattr(args, name) for name in ("prompts", "prefill_copies", "decode_copies")}
    for name, values in counts.items():
        if min(values) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {min(values)}")
    try:
        args.device = chosen_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    return args


def prepare(args: Namespace) -> tuple[Model, dict[str, Any]]:
    """The vanilla model, whose weights all lines share, and what the report says before the numbers."""
    logging.set_verbosity_error()
    device = args.device
    dtype = getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    shape = args.shape or ("small" if device.type == "cpu" else "550m")
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.latency", *sys.argv[1:]]),
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


def make_model(shape: str, line: Line, device: torch.device, dtype: torch.dtype, like: Any = None) -> Model:
    """Random weights, or those of ``like``: all lines share them."""
    config = model_config(shape, line)
    if like is None:
        return random_model(config, device, dtype)
    with torch.device("meta"):
        model: Model = PHDLlamaForCausalLM(config)
    model.load_state_dict(like.state_dict(), assign=True)
    model.tie_weights()
    model.model.rotary_emb = like.model.rotary_emb
    return model.eval()


def model_config(shape: str, line: Line) -> PHDLlamaConfig:
    """Naive repetition is the vanilla model on ids that come K times."""
    name = "vanilla" if line.variant.copies.cached else str(line.variant)
    return PHDLlamaConfig(
        **SHAPES[shape], max_position_embeddings=1 << 20, phd_variant=name, tie_word_embeddings=True
    )


def random_model(config: PHDLlamaConfig, device: torch.device, dtype: torch.dtype) -> Model:
    """The same weights at every call, in eval mode."""
    torch.manual_seed(0)
    with device:
        model: Model = PHDLlamaForCausalLM(config)
        model.to(dtype)
        # its buffers are computed, and fp32 whatever the weights are
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def shape_of(base: Model) -> str:
    return next(name for name, shape in SHAPES.items() if shape["hidden_size"] == base.config.hidden_size)


def of(base: Model, line: Line) -> Model:
    """``base``'s weights as ``line``."""
    return make_model(shape_of(base), line, base.device, base.dtype, like=base)


def machine_limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What this machine reaches: a large matrix product, and reading memory that no cache holds."""
    # a GPU reads 268 MB in less time than it takes to launch and wait
    size, count = (2048, 1 << 28) if device.type == "cpu" else (8192, 1 << 31)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    big = torch.ones(count // dtype.itemsize, device=device, dtype=dtype)
    calls = {"product": lambda: torch.mm(a, b, out=out), "read": lambda: big.sum()}
    best = {name: min(times) for name, times in in_turns(calls, 5, device).items()}
    return {"flop_per_second": 2 * size**3 / best["product"], "bytes_per_second": big.nbytes / best["read"]}


def to_rows(times: dict[Line, list[float]], **common: Any) -> list[dict[str, Any]]:
    """Times and the median over the rounds of their ratio to vanilla's."""
    vanilla = times[VANILLA]
    return [
        {
            "variant": str(line.variant),
            "style": line.style,
            "copies": line.copies,
            **common,
            "seconds": values,
            "ratio": median(a / b for a, b in zip(values, vanilla, strict=True)),
        }
        for line, values in times.items()
    ]


def prefill(base: Model, length: int, args: Namespace) -> list[dict[str, Any]]:
    """Time from a prompt to the logits of its last token and a cache that is ready for the next."""
    ids = torch.randint(0, base.config.vocab_size, (1, length), device=base.device)
    lines = chosen(args, args.prefill_copies, length)
    calls = {line: _prompt(of(base, line), ids, line) for line in lines}
    with torch.inference_mode():
        rows = to_rows(in_turns(calls, args.rounds, base.device, repeats=1), prompt=length)
    for row, line in zip(rows, lines, strict=True):
        hidden = line.hidden_columns(length, base.config.num_hidden_layers)
        flop = _prompt_flop(base, length, line, hidden) / _prompt_flop(base, length, VANILLA, 0)
        if line.style in HYBRIDS:
            floor = flop
        else:
            floor = line.copies if line.style == "naive" else 1 + (line.copies - 1) * hidden / length
        row |= {"floor": floor, "times_floor": row["ratio"] / floor, "flop_ratio": flop}
    return rows


def _prompt_flop(base: Model, length: int, line: Line, hidden: int) -> int:
    """Multiplications and additions of all layers, attention as the rule has it but for the small band."""
    config = base.config
    products = sum(x.numel() for name, x in base.named_parameters() if ".layers." in name and x.dim() == 2)
    tokens = length * (line.copies if line.style == "naive" else 1)
    rows = hidden * (line.copies - 1)
    pairs = sum(
        rule.keys.pairs(tokens) + rows * (length - hidden // 2)
        for rule in line.variant.layers(config.num_hidden_layers)
    )
    width = config.num_attention_heads * config.head_dim
    return 2 * products * (tokens + rows) + 4 * width * pairs


def _prompt(model: Model, ids: torch.Tensor, line: Line) -> Callable[[], Any]:
    if line.style == "naive":
        ids = ids.repeat_interleave(line.copies, dim=1)
    return lambda: model(ids, logits_to_keep=1, use_cache=True)


def decode(base: Model, args: Namespace, report: dict[str, Any], *, graphed: bool) -> list[dict[str, Any]]:
    """Time of one step after a context: as generate calls it, or as a CUDA graph, which needs a static cache.

    Args:
        report: has ``machine_limits``.
    """
    calls, sizes = {}, {}
    lines = chosen(args, args.decode_copies, args.context)
    with torch.inference_mode():
        for line in lines:
            if graphed and line.style in ("naive", *HYBRIDS):
                continue
            model = of(base, line)
            repeats = line.copies if line.style == "naive" else 1
            room = args.context + args.steps * (args.rounds + 4)
            cache = filled_cache(model, args.context * repeats, room if graphed else None)
            sizes[line] = cache.nbytes()
            step = _graph(model, cache) if graphed else _step(model, cache, repeats)
            calls[line] = _several(step, args.steps)
        times = in_turns(calls, args.rounds, base.device, repeats=1)
    a_step = {line: [value / args.steps for value in values] for line, values in times.items()}
    floors = {line: step_floor(base, line, args.context, report) for line in calls}
    rows = to_rows(a_step, context=args.context, graphed=graphed)
    for row, line in zip(rows, calls, strict=True):
        floor = floors[line]
        row |= {"kv_bytes": sizes[line], "floor_seconds": floor, "floor_ratio": floor / floors[VANILLA]}
        row["times_floor"] = median(row["seconds"]) / floor
    return rows


def step_floor(base: Model, line: Line, context: int, report: dict[str, Any]) -> float:
    """Seconds that computing or reading take, whichever is longer. The mean over a chunk from ``context`` on,
    in which PHD-CSWA's hidden keys grow from none to a window and drop to none.
    """
    config = base.config
    shape = attention_shape(config)
    weights = sum(x.nbytes for x in base.parameters())
    return fmean(
        max(
            _step_flop(base, line, position) / report["flop_per_second"],
            (weights + line.variant.kv_cache_bytes(shape, position, base.dtype.itemsize))
            / report["bytes_per_second"],
        )
        for position in range(context, context + CHUNK)
    )


def _step_flop(base: Model, line: Line, position: int) -> int:
    """Multiplications and additions of a step at a position, attention as the rule has it."""
    config = base.config
    pairs = sum(
        rule.visible_pairs(position + 1) - rule.visible_pairs(position)
        for rule in line.variant.layers(config.num_hidden_layers)
    )
    products = sum(x.numel() for name, x in base.named_parameters() if x.dim() == 2 and "embed" not in name)
    head, width = config.vocab_size * config.hidden_size, config.num_attention_heads * config.head_dim
    return 2 * (line.copies * products + head) + 4 * width * pairs


def _several(step: Callable[[], Any], count: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(count):
            step()

    return call


def filled_cache(model: Model, length: int, room: int | None) -> PHDCache:
    """A cache of random numbers, as after a prompt of ``length`` tokens; the time of a step is the same."""
    config, copies = model.config, model.config.copies
    cache = PHDCache(config, max_cache_len=room)
    heads = (1, config.num_key_value_heads)
    options: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    columns = length - copies.band_start(length)
    for index in range(config.num_hidden_layers):
        keys, values = (torch.randn(*heads, length, config.head_dim, **options) for _ in range(2))
        cache.update(keys, values, index)
        if copies.hidden:
            shape = (*heads, columns * copies.hidden, config.head_dim)
            keys, values = (torch.randn(shape, **options) for _ in range(2))
            cache.phd_layers[index].retain_hidden(keys, values, columns)
    cache.input_ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
    return cache


def _step(model: Model, cache: PHDCache, repeats: int) -> Callable[[], Any]:
    ids = torch.zeros(1, repeats, dtype=torch.long, device=model.device)
    return lambda: model(ids, past_key_values=cache, logits_to_keep=1)


def _graph(model: Model, cache: PHDCache) -> Callable[[], Any]:
    """A step captured once and replayed: no launches from Python. (Has not been run on a GPU yet.)"""
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


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    with steady(args.device):
        base, report = prepare(args)
        report["prefill"] = [row for length in args.prompts for row in prefill(base, length, args)]
        report["decode"] = decode(base, args, report, graphed=False)
        if args.device.type == "cuda":
            report["decode"] += decode(base, args, report, graphed=True)
    print_tables(report)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        plot(report, args.output.with_suffix(".png"))
        print(f"Written to {args.output} and {args.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()

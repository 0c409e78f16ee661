"""A LongGen hybrid beside full attention: a training step, reading a prompt, decoding, bytes of KV cache.

    python benchmarks/longgen.py          # 32768 tokens; about half an hour on 2 cores; writes longgen.json
    python benchmarks/longgen.py --quick  # a minute, prints only
    python benchmarks/longgen.py --device cuda --output FILE  # bf16

One stack of Llama-2 7B's shape, reduced in layers and width: 8 layers of 512 (4 heads of 128), of which 3 in
the middle are full, as 12 of the paper's 32 are; blocks of 64, 1 + 32 kept (longgen-sink) or every 64th + 1
(longgen-block). One sequence, fp32 on a CPU. The three models run the same code, in turns in one process with
fixed threads; times are medians. The paper's numbers are for 7B at 131072 tokens on A100s: attention was 2.7
times the FLOPs of the linear layers there, in this stack it is 5.3 times at 32768 tokens. On a GPU a step of
decoding may take as long as its launches take, whatever it reads: the time of its kernels stands beside it.
"""

import sys
from pathlib import Path

# The folder of this file holds a tokenize.py, and the standard library must go on finding its own.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import shlex
import statistics
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import phd.hf
from benchmarks.attention import machine
from benchmarks.latency import Model, random_model
from benchmarks.timing import kernel_seconds, seconds, steady
from phd.rules.costs import Shape, dense_products
from phd.rules.variant import Variant

LAYERS, HIDDEN, FFN, HEADS, VOCABULARY = 8, 512, 1376, 4, 256
SHAPE = Shape(
    hidden_size=HIDDEN,
    num_attention_heads=HEADS,
    num_query_groups=HEADS,
    kv_channels=HIDDEN // HEADS,
    vocab_size=VOCABULARY,
    mlp_products=[dense_products(HIDDEN, FFN, True)] * LAYERS,
)
MODELS = {
    "full": "full",
    "longgen-sink": "2sink-3full-3sink",
    "longgen-block": "2block-sparse-3full-3block-sparse",
}
PAPER = {"train": 1.55, "prefill": 1.67, "decode": 1.41}
"""Times as fast as full attention."""
LAUNCH_BOUND = 0.8
"""A step whose kernels run for less of its time waits for their launches."""
RESULTS = Path(__file__).with_suffix(".json")


def make_model(variant: Variant, length: int, device: torch.device) -> Model:
    config = phd.hf.PHDLlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=2 * length,
        phd_variant=str(variant),
    )  # fmt: skip
    return random_model(config, device, dtype_on(device))


def dtype_on(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def train(model: Model, tokens: torch.Tensor) -> None:
    model.zero_grad()
    model(tokens, labels=tokens, use_cache=False).loss.backward()


@torch.no_grad()
def read(model: Model, tokens: torch.Tensor, cache: phd.hf.PHDCache) -> None:
    model(tokens, past_key_values=cache, logits_to_keep=1)


def decode(model: Model, tokens: torch.Tensor, cache: phd.hf.PHDCache) -> None:
    for token in tokens.split(1, dim=1):
        read(model, token, cache)


def measure(length: int, rounds: int, steps: int, device: torch.device) -> dict[str, dict]:
    """name of the model -> seconds of each round, on a GPU also of a step's kernels, KV bytes by the tensors
    and by the formula, floors.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (1, length + steps), generator=generator).to(device)
    prompt = tokens[:, :length]
    models: dict[str, Model] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, text in MODELS.items():
        variant = Variant.parse(text)
        models[name] = make_model(variant, length, device)
        flops = variant.flops_per_token(SHAPE, length)
        formula = variant.kv_cache_bytes(SHAPE, length, dtype_on(device).itemsize)
        results[name] = {"flops_per_token": flops, "kv_bytes_formula": formula} | {what: [] for what in PAPER}
    with steady(device):
        for turn in range(rounds):
            for name, model in models.items():
                print(time.strftime("%H:%M:%S"), f"round {turn + 1} of {rounds}: {name}", file=sys.stderr)
                result = results[name]

                result["train"].append(seconds(partial(train, model, prompt), device))
                cache = phd.hf.PHDCache(model.config)
                result["prefill"].append(seconds(partial(read, model, prompt, cache), device))
                result["kv_bytes"] = cache.nbytes()
                for token in tokens[:, length:].split(1, dim=1):
                    result["decode"].append(seconds(partial(read, model, token, cache), device))
                if device.type == "cuda" and turn == rounds - 1:  # the profiler slows down what comes after
                    kernels = kernel_seconds(partial(decode, model, tokens[:, length:], cache), device)
                    result["decode_kernels"] = kernels / steps
    summarize(results)
    return results


def summarize(results: dict[str, dict]) -> None:
    """Add medians, what they and the rest are beside full attention's, and whether launches bound a step."""
    full = results["full"]
    for result in results.values():
        for what in PAPER:
            result[f"{what}_median"] = statistics.median(result[what])
            result[f"{what}_times_as_fast"] = full[f"{what}_median"] / result[f"{what}_median"]
        if "decode_kernels" in result:
            result["decode_kernels_times_as_fast"] = full["decode_kernels"] / result["decode_kernels"]
            result["decode_launch_bound"] = result["decode_kernels"] < LAUNCH_BOUND * result["decode_median"]
        result["flops_to_full"] = result["flops_per_token"] / full["flops_per_token"]
        result["kv_to_full"] = result["kv_bytes"] / full["kv_bytes"]


def table(length: int, results: dict[str, dict]) -> Table:
    columns = (*PAPER, "its kernels", "FLOPs", "KV bytes")
    shown = Table("", *columns, title=f"{length} tokens: times as fast as full; parts of it")
    for name, result in results.items():
        speed = [f"{result[f'{what}_times_as_fast']:.2f}" for what in PAPER]
        if result.get("decode_launch_bound"):
            speed[-1] += " (launch-bound)"
        kernels = result.get("decode_kernels_times_as_fast")  # none on a CPU
        speed.append("" if kernels is None else f"{kernels:.2f}")
        shown.add_row(name, *speed, f"{result['flops_to_full']:.3f}", f"{result['kv_to_full']:.3f}")
    shown.add_row("paper: 7B, 131072, GPUs", *(f"{x:.2f}" for x in PAPER.values()), "", "", "0.38")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[32768])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32, help="tokens to decode in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu, cuda, cuda:1")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="4096 tokens, one round, prints only")
    args = parser.parse_args()
    if args.quick:
        args.lengths, args.rounds, args.steps = [4096], 1, 4
    torch.set_num_threads(args.threads)
    report: dict = {
        "command": shlex.join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"threads": args.threads, "device": str(args.device)},
        "paper": PAPER,
        "lengths": {},
    }
    for length in args.lengths:
        results = measure(length, args.rounds, args.steps, args.device)
        Console().print(table(length, results))
        report["lengths"][str(length)] = results
    if not args.quick:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Requests and tokens per second, time to the first token, and cache: vLLM beside transformers' server.

    python -m benchmarks.serving VANILLA PHD ... --text FILE                # exported folders; prints only
    python -m benchmarks.serving VANILLA PHD ... --text FILE --output FILE  # writes a JSON file

Each folder is served by both engines at once, as `phd serve` starts them, and they take turns: what disturbs
one disturbs all. A client sends its next request when the last one is answered, prompts and answers of fixed
lengths, greedy. The first folder is what the others are divided by.
"""

import sys
from pathlib import Path

# The folder of this file holds a tokenize.py, and the standard library must go on finding its own.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from phd.hf.convert import attention_shape
from phd.hf.load import open_folder
from phd.rules.copies import Copies
from phd.rules.variant import Variant
from phd.run.files import write_json
from tools.ports import held_ports

ENGINES = ("vllm", "transformers")
PATIENCE_S = 900


@dataclass
class Rates:
    """Of one level of concurrency."""

    requests_per_s: float
    tokens_per_s: float
    """of answers"""
    first_token_s: float
    """median"""


def ask(url: str, model: str, prompt: str, tokens: int) -> tuple[float, int]:
    """Seconds to the first text of a streamed answer, and the answer's tokens."""
    content = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    content["stream_options"] = {"include_usage": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    begin, first, count = time.monotonic(), None, 0
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if first is None and any(choice.get("text") for choice in event.get("choices", ())):
                first = time.monotonic() - begin
            count = (event.get("usage") or {}).get("completion_tokens", count)
    return (time.monotonic() - begin if first is None else first), count


def measure(url: str, model: str, prompts: Sequence[str], tokens: int, clients: int) -> Rates:
    """All ``prompts`` by so many clients."""
    begin = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        answers = [*pool.map(lambda prompt: ask(url, model, prompt, tokens), prompts)]
    took = time.monotonic() - begin
    return Rates(
        len(prompts) / took, sum(count for _, count in answers) / took, median(first for first, _ in answers)
    )


@contextlib.contextmanager
def server(folder: Path, engine: str, log: Path) -> Iterator[str]:
    """The address of `phd serve`, once it answers."""
    with held_ports(1) as (port,), open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "phd.commands.cli", "serve", str(folder), "--engine", engine,
             "--port", str(port)],
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ValueError(f"the server of {folder} by {engine} did not start: {log}")
                time.sleep(1)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10):
            return True
    except OSError:
        return False


def cache_bytes(folder: Path, length: int) -> dict[str, Any]:
    """Keys and values of one request of ``length`` positions, and naive repetition's of as many copies."""
    config, _, dtype = open_folder(folder)
    variant = Variant.parse(getattr(config, "phd_variant", "vanilla"))
    shape = attention_shape(config)
    count = variant.copies.count
    naive = variant if count == 1 else Variant(Copies(count, cached=True))
    return {
        "variant": str(variant),
        "kv_bytes": variant.kv_cache_bytes(shape, length, dtype.itemsize),
        "naive_kv_bytes": naive.kv_cache_bytes(shape, length, dtype.itemsize),
    }


def run(args: argparse.Namespace, logs: Path) -> dict[str, Any]:
    """The report."""
    words = args.text.read_text(encoding="utf-8").split()
    size = args.prompt_words
    if len(words) < 2 * size:
        raise ValueError(f"--text {args.text} has {len(words)} words, {2 * size} are needed")
    found: dict[tuple[Path, str, int], list[Rates]] = {}
    with contextlib.ExitStack() as stack:
        urls = {
            (folder, engine): stack.enter_context(
                server(folder, engine, logs / f"{folder.name}-{engine}.log")
            )
            for index, folder in enumerate(args.folders)
            for engine in ENGINES
        }
        for turn in range(-1, args.rounds):  # one to warm up
            for clients in args.clients:
                count = clients * args.requests
                first = turn * count * 7 % (len(words) - size)
                prompts = [
                    " ".join(words[begin : begin + size])
                    for begin in ((first + 13 * index) % (len(words) - size) for index in range(count))
                ]
                for (folder, engine), url in urls.items():
                    rates = measure(url, str(folder), prompts, args.tokens, clients)
                    if turn >= 0:
                        found.setdefault((folder, engine, clients), []).append(rates)
    rows = []
    for (folder, engine, clients), turns in found.items():
        base = found[args.folders[0], engine, clients]
        theirs = found[folder, "transformers", clients]
        rows.append(
            {
                "folder": folder.name, "engine": engine, "clients": clients,
                **{name: median(asdict(x)[name] for x in turns) for name in asdict(turns[0])},
                "tokens_per_s_of_first_folder": _ratio(turns, base),
                "tokens_per_s_of_transformers": _ratio(turns, theirs),
            }
        )  # fmt: skip
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": platform.processor(), "cores": os.cpu_count()},
        "prompt_words": size, "answer_tokens": args.tokens, "rounds": args.rounds,
        "caches": {x.name: cache_bytes(x, args.cache_length) for x in args.folders},
        "cache_length": args.cache_length,
        "rates": rows,
    }  # fmt: skip


def _ratio(turns: list[Rates], base: list[Rates]) -> float:
    """Median over the rounds of the quotient of two that ran in the same one."""
    return median(a.tokens_per_s / b.tokens_per_s for a, b in zip(turns, base, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--text", type=Path, required=True, help="prompts are cut out of it")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=4, help="of each client and round")
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache-length", type=int, default=4096, help="positions, of the caches' bytes")
    parser.add_argument("--logs", type=Path, default=Path("."), help="where the servers' output goes")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    args.logs.mkdir(parents=True, exist_ok=True)
    report = run(args, args.logs)
    print(json.dumps(report, indent=1))
    if args.output:
        write_json(args.output, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())

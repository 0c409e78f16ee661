"""Everything that only a GPU can tell, in one command and one file: `make gpu-check`.

    python benchmarks/gpu_check.py          # under 9 minutes on one H100 or H200; writes gpu_check.json
    python benchmarks/gpu_check.py --dry    # every piece tiny, on the CPU; prints only

Each piece is a module of benchmarks/gpu, run in a process of its own until its share of the budget is used;
what a piece leaves goes to those after it. A piece that fails, takes too long or lacks a package is noted
with the reason, and the next one goes on. The file is rewritten after every piece. Exit status 1 if a piece
failed or took too long.
"""

import sys
from pathlib import Path

# The folder of this file holds a tokenize.py, and the standard library must go on finding its own.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from datetime import UTC, datetime

import torch
from rich.console import Console
from rich.markup import escape

from benchmarks.gpu.piece import ROOT, TAIL, Result
from benchmarks.gpu.summary import add_shares, targets_table
from phd.run.files import read_json, write_json

PIECES = {
    "environment": 0.05,
    "peak": 0.04,
    "tests": 0.21,
    "attention": 0.15,
    "layouts": 0.08,
    "training": 0.24,
    "curves": 0.12,
    "optimizers": 0.03,
    "latency": 0.10,
    "longgen": 0.10,
}
"""Shares of the budget, by weight."""
SETTINGS = {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}
"""torch may choose cuDNN on Hopper for attention, which plans half a second for every new shape, and
each step of decoding has one. What asks for cuDNN by name still gets it.
"""
RESULTS = Path(__file__).with_suffix(".json")
BAD = ("failed", "timed out")


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    console = Console(highlight=False, soft_wrap=True, width=110)
    begin = time.monotonic()
    pieces: dict[str, Result] = {}
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **state_of_the_code(),
        "dry": args.dry,
        "budget_seconds": args.budget,
        "pieces": pieces,
    }
    shares = {name: PIECES[name] / sum(PIECES[name] for name in args.only) for name in args.only}
    end = begin
    with tempfile.TemporaryDirectory() as folder:
        for name, share in shares.items():
            end += share * args.budget
            console.print(
                f"{time.strftime('%H:%M:%S')} [bold]{name}[/bold], at most {end - time.monotonic():.0f} s"
            )
            pieces[name] = piece = run_piece(name, end - time.monotonic(), args.dry, Path(folder))
            console.print(f"{piece['seconds']:15.1f} s: {piece['status']} {escape(last_line(piece))}")
            add_shares(pieces)
            report["seconds"] = time.monotonic() - begin
            if args.output:
                write_json(args.output, report)
    console.print(targets_table(pieces, args.dry))
    if args.output:
        console.print(f"Written to {args.output}")
    return int(any(piece["status"] in BAD for piece in pieces.values()))


def run_piece(name: str, limit: float, dry: bool, folder: Path) -> Result:
    """Its status, seconds, why if it is not ok, and its numbers; ``folder`` is for temporary files."""
    file, log = folder / f"{name}.json", folder / f"{name}.log"
    limit = max(limit, 0)
    command = [sys.executable, "-m", f"benchmarks.gpu.{name}", "--output", str(file)]
    command += ["--until", str(time.time() + limit), *(["--dry"] if dry else [])]
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **SETTINGS, "TMPDIR": str(folder)},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(limit)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            end_group(process)
    result = read_json(file)
    if result.get("status") in (None, "running"):  # it did not come to an end of its own
        reason = f"stopped after {limit:.0f} s" if late else f"ended with {process.returncode}"
        result["status"] = "timed out" if late else "failed"
        result["why"] = f"{reason}: {log.read_text(errors='replace')[-TAIL:]}"
    return {"status": result.pop("status"), "seconds": time.monotonic() - begin} | result


def end_group(process: subprocess.Popen) -> None:
    """The piece and whatever it started: its session is its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(piece: Result) -> str:
    lines = str(piece.get("why", "")).strip().splitlines()
    return lines[-1] if lines else ""


def state_of_the_code() -> Result:
    """The commit, and whether files differ from it; null where there is no git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "modified": None if changes is None else bool(changes)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="every piece tiny, on the CPU")
    parser.add_argument(
        "--only", nargs="+", choices=PIECES, default=[*PIECES], metavar="NAME", help=" ".join(PIECES)
    )
    parser.add_argument("--budget", type=float, default=530, help="seconds for all pieces together")
    parser.add_argument(
        "--output", type=Path, help=f"default: {RESULTS.name} beside this file; none with --dry"
    )
    args = parser.parse_args(arguments)
    if not args.dry:
        args.output = args.output or RESULTS
        if not torch.cuda.is_available():
            parser.error("torch sees no CUDA device; --dry runs everything tiny on the CPU")
    return args


if __name__ == "__main__":
    # so that the piece in hand is ended too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise SystemExit(main())

"""What the pieces of the GPU check share: command line, time that is left, what stays of one that ends early.

A piece is a module of this folder with ``run(dry) -> dict``. ``python -m benchmarks.gpu.NAME`` runs one alone
and prints its result; ``dry`` is everything tiny, on the CPU.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phd.run.files import write_json

ROOT = Path(__file__).parents[2]
PACKAGES = frozenset(
    {
        *("megatron", "transformers", "huggingface_hub", "tokenizers", "safetensors", "sentencepiece"),
        *("gigatoken", "tiktoken", "pyarrow", "tensorboard", "wandb", "wandb_workspaces", "matplotlib"),
        *("plotly", "scipy", "lm_eval", "pytest", "triton"),
        *("transformer_engine", "apex", "flash_attn", "flash_attn_interface"),
    }
)
"""What a machine for measuring may lack. Any other module that is missing is a fault, such as a kernel that
Megatron imports without looking whether it is there.
"""
TAIL = 3000
"""Characters of a failed program's output that are kept."""

type Result = dict[str, Any]

_deadline = math.inf
_file: Path | None = None
_kept: Result = {}


class Skipped(Exception):
    """The piece cannot run on this machine; says why."""


def main(run: Callable[[bool], Result]) -> int:
    """Run one piece as the command line says, and write or print its result; the exit status."""
    global _deadline, _file
    parser = argparse.ArgumentParser(description=(run.__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="everything tiny, on the CPU")
    parser.add_argument("--until", type=float, default=math.inf, help="when it is stopped, as time.time()")
    parser.add_argument("--output", type=Path, help="JSON file, rewritten whenever there is more")
    args = parser.parse_args()
    _deadline, _file = args.until, args.output
    result = outcome(run, args.dry)
    result = _kept | result
    if _file is None:
        print(json.dumps(result, indent=1))
    else:
        write_json(_file, result)
    return int(result["status"] not in ("ok", "skipped"))


def outcome(run: Callable[[bool], Result], dry: bool) -> Result:
    """The result of ``run`` with its status: ok, skipped, timed out or failed, and why."""
    try:
        return {"status": "ok"} | run(dry)
    except Skipped as error:
        return {"status": "skipped", "why": str(error)}
    except TimeoutError as error:
        return {"status": "timed out", "why": str(error)}
    except Exception:
        text = traceback.format_exc()
        if package := missing_package(text):
            return {"status": "skipped", "why": f"no package {package}"}
        return {"status": "failed", "why": text[-TAIL:]}


def keep(**numbers: Any) -> None:
    """What has been measured so far: it stays in the report whatever happens next."""
    _kept.update(numbers)
    if _file is not None:
        write_json(_file, {"status": "running"} | _kept)


def time_left() -> float:
    """Seconds until this piece is stopped."""
    return _deadline - time.time()


def call(command: list[str], **environment: str) -> str:
    """Run a program of this repository to its end; what it printed.

    Raises:
        Skipped: it lacks a package.
        TimeoutError: it did not end in the time that is left.
        RuntimeError: it failed; the end of its output.
    """
    limit = None if time_left() == math.inf else max(time_left() - 2, 0)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[1:3]} did not end in {limit:.0f} s") from error
    if done.returncode == 0:
        return done.stdout
    if package := missing_package(done.stdout):
        raise Skipped(f"no package {package}")
    raise RuntimeError(f"exit status {done.returncode}: {done.stdout[-TAIL:]}")


def missing_package(output: str) -> str | None:
    """The one of PACKAGES whose absence ended a program that printed this: what its last error names."""
    # a line of a traceback, or of pytest's, or of a rank's
    line = r"^(?:E +|\[rank\d+\]: )?([\w.]*(?:Error|Exception)(?:: .*)?)$"
    errors = re.findall(line, output, re.MULTILINE)
    named = re.match(r"ModuleNotFoundError: No module named '([\w.]+)'", errors[-1]) if errors else None
    return named[1] if named and named[1].partition(".")[0] in PACKAGES else None


def target(what: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> Result:
    """A line of the table at the end; exactly one of the bounds is given."""
    limit = at_most if at_most is not None else at_least
    assert limit is not None and (at_most is None) != (at_least is None)
    reached = value <= limit if at_most is not None else value >= limit
    sign = "at most" if at_most is not None else "at least"
    return {"what": what, "value": value, "target": f"{sign} {limit}", "reached": reached}


def say(text: str) -> None:
    """Progress, for who runs the piece alone or looks why it failed."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)

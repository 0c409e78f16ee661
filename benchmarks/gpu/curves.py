"""The same short training of a small PHD model in bf16 with two seeds, and in FP8 where that is installed.

The largest difference of the smoothed loss curves' second halves, FP8 to bf16, stands beside that of the two
seeds. The text is Python's standard library, tokenized here.
"""

import shlex
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.piece import Result, call, keep, main, say, time_left
from benchmarks.gpu.timing import device_of
from benchmarks.gpu.trainings import HAVE_ENGINE, RECIPES, example_flags, train
from examples.demo.corpus import write_corpus

SMOOTH = 20
"""Iterations of the moving mean."""
MODEL = (
    "--num-layers 4 --hidden-size 256 --ffn-hidden-size 704 --num-attention-heads 4 --num-query-groups 2 "
    "--seq-length 256 --max-position-embeddings 256 --micro-batch-size 16 --global-batch-size 16 "
    "--train-iters 200 --lr 2e-3 --lr-warmup-iters 20 --bf16"
)
DRY = "--micro-batch-size 2 --global-batch-size 2 --train-iters 6 --lr-warmup-iters 2"


def run(dry: bool) -> Result:
    """The same short training of a small PHD model in bf16 with two seeds, and in FP8."""
    device_of(dry)
    flags = example_flags("300k", "PHD-CSWA-2-16-32") + (DRY if dry else MODEL).split()
    runs = {"bf16, seed 1": ["--seed", "1"], "bf16, seed 2": ["--seed", "2"]}
    if HAVE_ENGINE and not dry:
        runs["FP8 delayed, seed 1"] = ["--seed", "1", *RECIPES["delayed"].split()]
    curves: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        data = tokenized(Path(folder))
        for name, more in runs.items():
            if curves and time_left() < longest:  # it would be stopped, and the curves not be compared
                left_out[name] = f"no time left: another run took {longest:.0f} s"
                continue
            say(name)
            begin = time.monotonic()
            _, lines = train([*flags, *data, *more])
            longest = max(longest, time.monotonic() - begin)
            curves[name] = [line["lm loss"] for line in lines]
            keep(curves=curves)
    first, *others = (smoothed(curve, 2 if dry else SMOOTH) for curve in curves.values())
    differences = {
        f"{name} to bf16, seed 1": largest(first, other)
        for name, other in zip([*curves][1:], others, strict=True)
    }
    if not HAVE_ENGINE:
        left_out["FP8"] = "no package transformer_engine"
    return {
        "flags": shlex.join(flags), "curves": curves, "largest_difference": differences, "left_out": left_out
    }  # fmt: skip


def tokenized(folder: Path) -> list[str]:
    """Text, tokenizer and data set; the flags that name them."""
    corpus, tokenizer, prefix = folder / "corpus.jsonl", folder / "tokenizer", folder / "text"
    write_corpus(corpus, tiny=True)  # which asks no package index
    phd = [sys.executable, "-m", "phd.commands.cli", "data"]
    call(
        [
            *phd,
            "train-tokenizer",
            "--input",
            str(corpus),
            "--output-prefix",
            str(tokenizer),
            "--vocab-size",
            "2048",
        ]
    )
    model = ["--tokenizer-model", f"{tokenizer}.model"]
    call([*phd, "tokenize", "--input", str(corpus), "--output-prefix", str(prefix), "--append-eod", *model])
    return [*model, "--data-path", str(prefix)]


def smoothed(curve: list[float], window: int) -> list[float]:
    """Moving mean."""
    sums = [sum(curve[end - window : end]) for end in range(window, len(curve) + 1)]
    return [total / window for total in sums]


def largest(curve: list[float], other: list[float]) -> float:
    """Largest difference in the second half."""
    pairs = list(zip(curve, other, strict=True))
    return max(abs(a - b) for a, b in pairs[len(pairs) // 2 :])


if __name__ == "__main__":
    raise SystemExit(main(run))

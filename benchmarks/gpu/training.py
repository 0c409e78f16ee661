"""Training steps of the paper's 550M and 1.2B: vanilla, PHD-CSWA-K-16-32, and in FP8 where that is installed.

One GPU, mock data, two samples of 4096 tokens in a micro batch, two micro batches in a step; the flags are
those of examples/pretrain.sh. Times are medians over the steps after the warm-up.
"""

import shlex
import statistics
import time
from dataclasses import dataclass

from benchmarks.gpu.piece import Result, Skipped, keep, main, say, target, time_left
from benchmarks.gpu.timing import device_of
from benchmarks.gpu.trainings import HAVE_ENGINE, RECIPES, example_flags, train

WARM_UP = 4
BATCHES = "--mock-data --tokenizer-type NullTokenizer --micro-batch-size 2 --global-batch-size 4"


@dataclass(frozen=True)
class Training:
    """One run: a file of examples/sizes, K, and an FP8 recipe or None."""

    size: str
    copies: int
    recipe: str | None = None

    @property
    def name(self) -> str:
        return f"{self.size} K={self.copies}" + (f" FP8 {self.recipe}" if self.recipe else "")

    @property
    def variant(self) -> str:
        return f"PHD-CSWA-{self.copies}-16-32" if self.copies > 1 else "vanilla"


# What is wanted most comes first: the rest is left out where time ends.
PLAN = (
    Training("550m", 1), Training("550m", 2), Training("1.2b", 1), Training("1.2b", 2),
    Training("1.2b", 1, "delayed"), Training("550m", 3), Training("1.2b", 2, "delayed"),
    Training("1.2b", 1, "tensorwise"), Training("1.2b", 1, "blockwise"),
)  # fmt: skip
DRY = (Training("300k", 1), Training("300k", 2))


def run(dry: bool) -> Result:
    """Training steps of the paper's 550M and 1.2B: vanilla, PHD-CSWA-K-16-32, and in FP8."""
    device_of(dry)
    about: Result = {"vanilla_attention": "Transformer Engine" if HAVE_ENGINE else "ours at K = 1"}
    runs: dict[str, Result] = {}
    failed = []
    longest = 0.0
    for training in DRY if dry else PLAN:
        begin = time.monotonic()
        if training.recipe and not HAVE_ENGINE:
            runs[training.name] = {"skipped": "no package transformer_engine"}
        elif time_left() < longest:
            runs[training.name] = {"skipped": f"no time left: another run took {longest:.0f} s"}
        else:
            say(training.name)
            try:
                runs[training.name] = steps(training, dry)
            except Skipped as error:
                runs[training.name] = {"skipped": str(error)}
            except (RuntimeError, TimeoutError, LookupError, ValueError, OSError) as error:
                runs[training.name] = {"failed": f"{type(error).__name__}: {error}"}
                failed.append(training.name)
        longest = max(longest, time.monotonic() - begin)
        keep(**about, runs=runs)
    add_ratios(runs)
    keep(runs=runs, targets=targets(runs))
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")
    if not any("ms" in row for row in runs.values()):
        raise Skipped(runs[next(iter(runs))]["skipped"])
    return {}


def steps(training: Training, dry: bool) -> Result:
    """ms of a step, tokens/s, TFLOP/s and MFU by formula; the work really done, no more."""
    flags = example_flags(training.size, training.variant)
    flags += BATCHES.split()
    # 100352 with Megatron's padding, the paper's
    flags += ["--vocab-size", "511" if dry else "100351", "--train-iters", "6" if dry else "14"]
    flags += ["--lr-warmup-iters", "2", *([] if dry else ["--bf16"])]
    if training.recipe:
        flags += RECIPES[training.recipe].split()
    about, lines = train(flags)
    rates = [line["phd/tokens-per-second"] for line in lines[WARM_UP:]]
    tokens = about["global_batch_size"] * about["seq_length"]
    tokens_per_second = statistics.median(rates)
    return {
        "ms": tokens / tokens_per_second * 1e3,
        "ms_of_steps": [tokens / rate * 1e3 for rate in rates],
        "tokens_per_second": tokens_per_second,
        "tflops": tokens_per_second * about["flops_per_token"] / 1e12,
        "mfu": statistics.median(line.get("phd/mfu", 0.0) for line in lines[WARM_UP:]) or None,
        "flops_over_vanilla": about["flops_over_vanilla"],
        "parameters": about["parameters"],
        "loss": lines[-1]["lm loss"],
        "flags": shlex.join(flags),
    }


def add_ratios(runs: dict[str, Result]) -> None:
    """In bf16, time over K times vanilla's, and over vanilla's for as many FLOPs; of FP8 runs, tokens/s over
    bf16's.
    """
    for training in (*PLAN, *DRY):
        row = runs.get(training.name, {})
        vanilla = runs.get(Training(training.size, 1).name, {})
        if training.recipe:
            vanilla = runs.get(Training(training.size, training.copies).name, {})
            if "ms" in row and "ms" in vanilla:
                row["fp8_over_bf16"] = row["tokens_per_second"] / vanilla["tokens_per_second"]
        elif training.copies > 1 and "ms" in row and "ms" in vanilla:
            row["times_floor"] = row["ms"] / (training.copies * vanilla["ms"])
            row["times_flops"] = row["ms"] / (row["flops_over_vanilla"] * vanilla["ms"])


def targets(runs: dict[str, Result]) -> list[Result]:
    found = []
    # Not times_floor: the last layer does less than K times the work, which would hide a loss as large.
    if ratios := [row["times_flops"] for row in runs.values() if "times_flops" in row]:
        found.append(target("training step: PHD / (its FLOPs x vanilla)", max(ratios), at_most=1.03))
    in_bf16 = {training.name for training in (*PLAN, *DRY) if training.recipe is None}
    if rates := [row["mfu"] for name, row in runs.items() if name in in_bf16 and row.get("mfu")]:
        found.append(target("training step: MFU", min(rates), at_least=0.45))
    fp8 = runs.get(Training("1.2b", 1, "delayed").name, {})
    if "fp8_over_bf16" in fp8:
        found.append(target("1.2B: FP8 tokens/s / bf16's", fp8["fp8_over_bf16"], at_least=1.25))
    return found


if __name__ == "__main__":
    raise SystemExit(main(run))

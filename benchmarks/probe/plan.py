"""What benchmarks/probes.py measures and how, written before the first cell of its table was run.

Question. A hidden copy adds width that works in parallel, and no depth. So theory (tokens without content
widen a transformer of constant depth: arXiv 2505.18948, 2505.21024; hops need depth: 2402.09268) has
copies help where much is to be done at once and not where one step must follow another. But all copies of
a token enter the first layer alike, so copies with an identity (``+vector``, ``+table``) should get more
out of it.

Predictions, each beside vanilla at equal steps on equal batches:
  1. parity and match3: ``+vector`` and ``+table`` are more accurate, and so is twice the width; copies
     without an identity lie between vanilla and those.
  2. hop: no PHD variant is more accurate; twice the depth is.

Measure, one: accuracy over all positions of a held-out set of a fixed seed, after the last step. Beside it
stand parameters, training FLOPs a token and bytes of the cache.

Statistics. A seed says first weights and batches, so arms are paired by seed. Means and differences to
vanilla with 99% t-intervals; two-sided paired t-tests; p adjusted by Holm's method for all comparisons of
the table (5 arms, 3 tasks). "More accurate" holds where the adjusted p is below 0.01. That one is not is
never proved by a large p: the interval says how large a gain it leaves.

Model: ``phd.hf``, which computes what pretrain_phd.py trains (tests/hf compares logits) and starts in
seconds. These labels are not the next tokens: Megatron's data sets and loss would be in the way and are
not what is probed.

Sizes and learning rates were chosen on seeds 101 and 102 by vanilla alone, which is to be about half-way
from a guess to all right after 1000 steps. The only run of PHD before this was written, 200 steps to see
how long they take (parity of window 8, no identity, samples without their first token), was as accurate
as a guess, as was vanilla. One cell of the table was run to see that a cell runs (match3, vanilla, seed 1:
81.0). calibration.json has every run of 1000. Vanilla's accuracy in percent (seed
101 but where 102 is said):

  parity  window 6: 69.1 at 3e-3 (102), 59.5 at 1e-2 (102); 7: 67.8 at 1e-3, 70.2 and 69.1 (102) at 3e-3,
          55.5 at 1e-2; 8: 70.4 at 3e-3, 55.9 and 59.2 (102) at 1e-2. A guess: 51.9.
  match3  8 numbers mod 16: 90.8 at 3e-3; mod 24: 77.4 at 1e-3, 82.5 at 3e-3, 81.1 at 1e-2; 10 numbers mod
          32: 74.2 at 3e-3. A guess: 64.4 (mod 24).
  hop     2 hops: 91.3 at 1e-2 (102); 3 hops: 81.3 at 5e-3, 81.2 at 1e-2, 78.8 at 2e-2. A guess: 41.5.
          Twice the depth was run as well, at 1e-2, to know that the task can be learned in these steps:
          100.0. So the second half of prediction 2 is a control of the probe, and no discovery.
"""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.probe.tasks import Task, p_hop, prefix_match3, windowed_parity
from benchmarks.probe.training import HELD_OUT_SAMPLES, HELD_OUT_SEED, Arm, Recipe, train
from phd.compare.statistics import Criterion


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A task and how each arm is trained on it."""

    task: Task
    recipe: Recipe


BASELINE = "vanilla"
ARMS = {
    BASELINE: Arm(),
    "PHD-CSWA-2-16-32": Arm(variant="PHD-CSWA-2-16-32"),
    "PHD-CSWA-2-16-32+vector": Arm(variant="PHD-CSWA-2-16-32+vector"),
    "PHD-CSWA-2-16-32+table": Arm(variant="PHD-CSWA-2-16-32+table"),
    "vanilla, twice the width": Arm(hidden_size=64),
    "vanilla, twice the depth": Arm(num_layers=4),
}
PROBES = {
    "parity": Probe(task=windowed_parity(31, 7), recipe=Recipe(steps=1000, samples=32, learning_rate=3e-3)),
    "match3": Probe(task=prefix_match3(8, 24), recipe=Recipe(steps=1000, samples=128, learning_rate=3e-3)),
    "hop": Probe(task=p_hop(31, 3, 4), recipe=Recipe(steps=1000, samples=32, learning_rate=1e-2)),
}
SEEDS = (1, 2, 3, 4, 5)
CRITERION = Criterion(alpha=0.01)


def run_cell(task: str, arm: str, seed: int) -> dict[str, Any]:
    """What :func:`train` says of it."""
    probe = PROBES[task]
    return train(ARMS[arm], probe.task, probe.recipe, seed)


def as_json() -> dict[str, Any]:
    """Everything that the numbers of a cell follow from, but the code."""
    return {
        "arms": {name: asdict(arm) for name, arm in ARMS.items()},
        "probes": {
            name: {"task": probe.task.name, "length": probe.task.length, "symbols": probe.task.symbols}
            | asdict(probe.recipe)
            for name, probe in PROBES.items()
        },
        "seeds": SEEDS,
        "held_out": {"seed": HELD_OUT_SEED, "samples": HELD_OUT_SAMPLES},
    }

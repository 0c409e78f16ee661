"""Learning rates of the study's trunks, chosen on vanilla alone and on a share of their text.

    python -m benchmarks.evidence.rates

Trains each size for ITERATIONS with a rate that falls to 0, at half, once and twice the first guess, and
writes the validation losses to benchmarks/evidence/rates.json. The rate in study.py is the best of the three.
"""

from functools import partial
from pathlib import Path

from benchmarks.evidence.run import KEPT, WORK, Study, on_trunk_text, prepare_text, validation_loss
from benchmarks.evidence.study import TRUNKS, Trunk
from phd.run.files import write_json
from phd.run.status import FINISHED, judge

ITERATIONS = 600
GUESSES = {"0.05M": 6e-3, "0.2M": 4e-3, "0.5M": 3e-3, "1M": 2.5e-3}
FACTORS = (0.5, 1, 2)


def main() -> None:
    prepare_text()
    study = Study(until=None)
    cells = [
        (trunk, GUESSES[trunk.name] * factor)
        for trunk in reversed(TRUNKS)  # the largest takes longest
        if trunk.name in GUESSES
        for factor in FACTORS
    ]
    study.together([partial(train, study, *cell) for cell in cells])
    losses = {
        name: {f"{lr:g}": validation_loss(folder(trunk, lr)) for trunk, lr in cells if trunk.name == name}
        for name in GUESSES
    }
    write_json(
        KEPT / "rates.json",
        {
            "command": "python -m benchmarks.evidence.rates",
            "iterations": ITERATIONS,
            "validation_loss": losses,
        },
    )
    for name, found in losses.items():
        print(name, {lr: round(loss, 4) for lr, loss in found.items()})


def folder(trunk: Trunk, lr: float) -> Path:
    return WORK / "rates" / f"{trunk.name}-{lr:g}"


def train(study: Study, trunk: Trunk, lr: float) -> None:
    """One cell, unless it is trained already; one that was interrupted goes on."""
    if folder(trunk, lr).exists() and judge(folder(trunk, lr))[0] == FINISHED:
        return
    flags = ("--lr", f"{lr:g}", "--lr-decay-style", "linear", "--train-iters", str(ITERATIONS))
    study.train(on_trunk_text(trunk, folder(trunk, lr), *flags), folder(trunk, lr))


if __name__ == "__main__":
    main()

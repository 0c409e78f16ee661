"""What the paper reports of a variant (arXiv 2504.14992, Tables 1 and 2), to stand beside our own rows."""

from dataclasses import dataclass
from typing import NamedTuple

SIZES = {"1.2B": "500B", "550M": "300B"}
"""Model size: training tokens."""


class Reported(NamedTuple):
    loss: float
    """Of training."""
    accuracy: float
    """Mean over seven tasks, in percent."""


REPORTED = {
    "1.2B": {
        "vanilla": Reported(2.601, 54.7),
        "PHD-CSWA-2-16-32": Reported(2.576, 56.2),
        "PHD-CSWA-3-16-32": Reported(2.567, 56.7),
    },
    "550M": {
        "vanilla": Reported(2.782, 49.3),
        "PHD-SWA-2-16-inf": Reported(2.753, 50.1),
        "PHD-SWA-3-16-inf": Reported(2.739, 50.2),
        "PHD-SWA-5-16-inf": Reported(2.725, 51.1),
    },
}
"""By size and variant: Table 1 is the 1.2B, Table 2 the 550M. Data and tokenizer are the paper's own."""

NOTE = (
    "The paper's losses are of its own data and tokenizer, so that only differences bear comparison: "
    + ", ".join(f"{size} parameters on {tokens} tokens" for size, tokens in SIZES.items())
    + "."
)


@dataclass(frozen=True)
class PaperLoss:
    size: str
    loss: float
    difference: float | None
    """To the paper's vanilla of the same size; None for vanilla itself."""


def paper_losses(name: str) -> list[PaperLoss]:
    """The paper's losses of the variant ``name``, one for each size it was trained in; often none."""
    found = []
    for size, variants in REPORTED.items():
        if name in variants:
            loss = variants[name].loss
            difference = None if name == "vanilla" else round(loss - variants["vanilla"].loss, 3)
            found.append(PaperLoss(size, loss, difference))
    return found

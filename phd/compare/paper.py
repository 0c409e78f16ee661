"""What the paper reports of a variant (arXiv 2504.14992, Tables 1 and 2), to stand beside our own rows."""

from dataclasses import dataclass

SIZES = {"1.2B": "500B", "550M": "300B"}
"""Model size: training tokens."""

LOSSES = {
    "1.2B": {"vanilla": 2.601, "PHD-CSWA-2-16-32": 2.576, "PHD-CSWA-3-16-32": 2.567},
    "550M": {
        "vanilla": 2.782,
        "PHD-SWA-2-16-inf": 2.753,
        "PHD-SWA-3-16-inf": 2.739,
        "PHD-SWA-5-16-inf": 2.725,
    },
}
"""Loss by size and variant: Table 1 is the 1.2B, Table 2 the 550M. Data and tokenizer are the paper's own."""

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
    for size, losses in LOSSES.items():
        if name in losses:
            difference = None if name == "vanilla" else round(losses[name] - losses["vanilla"], 3)
            found.append(PaperLoss(size, losses[name], difference))
    return found

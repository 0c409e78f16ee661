"""The panels of a dashboard, one list from which the HTML page and the W&B workspace are both made."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from phd.compare.logs import RunLog
from phd.run.record import (
    GRADIENT_NORM,
    LEARNING_RATE,
    MFU,
    ORIGINAL_LOSS,
    TFLOPS,
    THROUGHPUT,
    TRAIN_LOSS,
    VALIDATION_LOSS,
)

# In the order of pyplot's C0, C1, ...: a group has the same color in the PNG, in the page and in W&B.
COLORS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)

NATS = "nats per token"
SET = "{set}"
"""In a title and a metric: stands for each named validation set."""
SAMPLES = "samples"


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: its title and what W&B calls it."""

    title: str
    wandb: str


AXES = {
    "tokens": Axis("original tokens seen", "tokens"),
    "flops": Axis("training FLOPs", "flops"),
    "hours": Axis("hours since the first record, pauses included", "RelativeTime(Wall)"),
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What to draw, in terms that both outputs know."""

    section: str
    title: str
    y: tuple[str, ...]
    """Names of metrics, the same in metrics.jsonl and in W&B; lines after the first are dotted."""
    unit: str = ""
    x: str = "tokens"
    """A key of AXES."""
    log: bool = False
    """Whether the vertical axis is logarithmic."""
    zero: bool = False
    """Whether it starts at 0."""
    late: bool = False
    """Whether it leaves out the first fifth of training, whose steep fall would flatten all the rest."""
    smoothing: float = 0.0
    """Weight of W&B's exponential moving average, below 1; what was measured stays visible behind it."""
    kind: Literal["lines", "difference", "table", "system"] = "lines"
    """difference: to the baseline, HTML alone; system: what W&B itself measures, ``y`` is a pattern."""


PANELS = (
    Panel(
        section="Loss",
        title="Training loss",
        y=(TRAIN_LOSS,),
        unit=NATS,
        late=True,
        smoothing=0.95,
    ),
    Panel(
        section="Loss",
        title="Training loss by compute",
        y=(TRAIN_LOSS,),
        unit=NATS,
        x="flops",
        late=True,
        smoothing=0.95,
    ),
    Panel(section="Loss", title="Validation loss", y=(VALIDATION_LOSS,), unit=NATS, late=True),
    Panel(
        section="Loss",
        title="Validation loss by compute",
        y=(VALIDATION_LOSS,),
        unit=NATS,
        x="flops",
        late=True,
    ),
    # W&B can calculate with the metrics of one run only: it cannot subtract another run's, let alone that of
    # the same seed.
    Panel(
        section="Loss",
        title="Validation loss minus the baseline's",
        y=(VALIDATION_LOSS,),
        unit=NATS,
        kind="difference",
    ),
    Panel(
        section="Loss",
        title="Validation loss by time",
        y=(VALIDATION_LOSS,),
        unit=NATS,
        x="hours",
        late=True,
    ),
    Panel(
        section="Loss",
        title="Last copy (solid) and original copy (dotted)",
        y=(VALIDATION_LOSS, ORIGINAL_LOSS),
        unit=NATS,
        late=True,
    ),
    Panel(
        section="Validation sets",
        title=f"Validation loss: {SET}",
        y=(f"{VALIDATION_LOSS}-{SET}",),
        unit=NATS,
        late=True,
    ),
    Panel(
        section="Optimization",
        title="Gradient norm",
        y=(GRADIENT_NORM,),
        unit="L2 norm",
        log=True,
        smoothing=0.98,
    ),
    Panel(section="Optimization", title="Learning rate", y=(LEARNING_RATE,), zero=True),
    Panel(section="Speed", title="Throughput", y=(THROUGHPUT,), unit="original tokens a second", zero=True),
    Panel(section="Speed", title="Compute per device", y=(TFLOPS,), unit="TFLOP/s", zero=True),
    Panel(section="Speed", title="Model FLOPs utilization", y=(MFU,), unit="part of the peak", zero=True),
    Panel(section="Samples", title="Samples", y=(SAMPLES,), kind="table"),
    *(
        Panel(section="System", title=title, y=(f"system/{name}",), unit=unit, x="hours", kind="system")
        for title, name, unit in (
            ("GPU utilization", r"gpu\.\d+\.gpu$", "%"),
            ("GPU memory", r"gpu\.\d+\.memoryAllocated$", "%"),
            ("GPU power", r"gpu\.\d+\.powerWatts$", "W"),
            ("GPU temperature", r"gpu\.\d+\.temp$", "degrees Celsius"),
            ("CPU utilization", r"cpu$", "%"),
            ("Memory of the process", r"proc\.memory\.rssMB$", "MB"),
            ("Network sent", r"network\.sent$", "bytes"),
        )
    ),
)


def expand(runs: Iterable[RunLog]) -> list[Panel]:
    """PANELS with one for each named validation set of ``runs``."""
    names = sorted({name for run in runs for name in run.validation_sets})
    panels = []
    for panel in PANELS:
        if SET not in panel.title:
            panels.append(panel)
            continue
        for name in names:
            y = tuple(metric.replace(SET, name) for metric in panel.y)
            panels.append(replace(panel, title=panel.title.replace(SET, name), y=y))
    return panels

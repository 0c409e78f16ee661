"""What tests read of a run folder."""

from pathlib import Path

from phd.run.record import METRICS_FILE, read_lines

TIMES = ("time", "phd/tokens-per-second", "phd/tflops-per-device")


def record(run: Path) -> list[dict]:
    """The record without what depends on the clock."""
    return [
        {key: value for key, value in line.items() if key not in TIMES}
        for line in read_lines(run / METRICS_FILE)
    ]

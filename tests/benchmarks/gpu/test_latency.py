"""The latency piece of the GPU check: its targets, and what it keeps."""

import pytest
import torch

from benchmarks.gpu import latency


def step(copies, ratio, *, graphed=True, style="PHD-CSWA", floor_ratio=1.0):
    row = {"style": style, "copies": copies, "graphed": graphed, "ratio": ratio}
    return row | {"floor_ratio": floor_ratio, "times_floor": 2.5}


def test_targets():
    """Of PHD-CSWA, steps of graphs alone; beyond K = 64 the roofline rises."""
    prompts = [{"style": s, "copies": 16, "prompt": 2048, "times_floor": 1.04} for s in ("naive", "PHD-CSWA")]
    steps = [step(1, 1.0, style="vanilla"), step(64, 1.06), step(64, 3.0, graphed=False)]
    steps.append(step(256, 1.5, floor_ratio=1.4))
    rows = latency.targets(prompts, steps)
    assert [row["target"] for row in rows] == ["at most 1.05", "at most 1.05", "at most 1.15"]
    assert [row["value"] for row in rows] == [1.04, 1.06, 1.5 / 1.4]
    assert [row["reached"] for row in rows] == [True, False, True]
    assert rows[-1]["times_roofline"] == 2.5


@pytest.mark.parametrize("fails", [False, True])
def test_each_part_is_kept_when_it_is_measured(fails, monkeypatch):
    """Graphs first; if they cannot be captured the rest is measured, and the piece still fails."""
    kept: list[tuple[int, int]] = []

    def decode(base, args, report, *, graphed):
        if graphed and fails:
            raise RuntimeError("capture")
        return [step(2, 1.0, graphed=graphed)]

    def prefill(base, length, args):
        return [{"style": "PHD-CSWA", "copies": 2, "prompt": length, "times_floor": 1.0}]

    numbers: dict = {"decode": [], "prefill": []}

    def keep(**new):
        numbers.update(new)
        kept.append((len(numbers["decode"]), len(numbers["prefill"])))

    monkeypatch.setattr(latency, "keep", keep)
    monkeypatch.setattr(latency, "device_of", lambda dry: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.device", lambda device: torch.device("cpu"))
    monkeypatch.setattr("benchmarks.latency.chosen_device", torch.device)
    monkeypatch.setattr("benchmarks.latency.prepare", lambda args: (None, {"dtype": "bfloat16"}))
    monkeypatch.setattr("benchmarks.latency.decode", decode)
    monkeypatch.setattr("benchmarks.latency.prefill", prefill)
    if fails:
        with pytest.raises(RuntimeError, match="capture"):
            latency.run(dry=False)
        assert kept == [(0, 0), (0, 0), (1, 0), (1, 1), (1, 2)]
    else:
        latency.run(dry=False)
        assert kept == [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)]
    assert len(numbers["targets"]) == (2 if fails else 3)

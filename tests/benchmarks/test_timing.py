"""How calls are timed: in turns, undisturbed, and without cuDNN's attention."""

import gc
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.timing import device_seconds, in_turns, steady

CPU = torch.device("cpu")


def test_calls_take_turns():
    order = []
    times = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2, CPU, repeats=3)
    assert "".join(order) == "ab" + "aaabbb" * 2
    assert [len(values) for values in times.values()] == [2, 2]
    order.clear()
    in_turns({"a": lambda: order.append("a")}, 2, CPU)
    assert len(order) == 3 + 2 * 20  # as short as this, twenty at a time


def test_the_collector_leaves_a_measurement_alone():
    """And looks at no object from before, which with a model and torch takes longer than many a call."""
    seen = []
    in_turns({"call": lambda: seen.append((gc.isenabled(), gc.get_freeze_count() > 10_000))}, 1, CPU)
    assert {*seen} == {(False, True)}
    assert gc.isenabled() and not gc.get_freeze_count()


def test_without_cudnn_on_the_device_that_is_named(monkeypatch):
    """Which a graph is captured on, and an event recorded."""
    current = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: current.append(device) or nullcontext())
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises(RuntimeError, match="within"), steady(torch.device("cuda:1")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        raise RuntimeError("within")
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert current == [torch.device("cuda:1")]


def test_kernels_are_counted_once():
    """The operator that launched a kernel carries its time too, and so does a range around both."""
    events = [
        SimpleNamespace(device_type=kind, self_device_time_total=3.0, is_user_annotation=note)
        for kind, note in ((DeviceType.CUDA, False), (DeviceType.CPU, False), (DeviceType.CUDA, True))
    ]
    assert device_seconds(events) == 3e-6

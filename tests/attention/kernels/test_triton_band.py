"""The Triton kernels without a GPU: numbers under the interpreter, and what the compiler makes for Hopper."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from phd.attention import flash
from phd.attention.band import Band
from tests.interpreter import interpreted
from tests.world import ROOT


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Of every case."""
    return interpreted("tests.attention.kernels.triton_cases", timeout=900)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 4e-6), ("float16", 2.5e-3)])
def test_equal_to_the_reference(errors, dtype, tolerance):
    """Output and all gradients; tolerances of tests/attention/test_attention.py, fp16's three bits below
    that of bf16, whose products come out wrong under the interpreter.
    """
    cases = {name: error for name, error in errors.items() if name.endswith(dtype)}
    assert len(cases) == 11
    assert {name: error for name, error in cases.items() if not error < tolerance} == {}


def test_halo_equals_the_band_of_the_cpu(errors):
    assert errors["halo"] < 4e-6


def test_compiles_for_hopper(tmp_path):
    """To machine code, in the shared memory that a block may have: on an A100 163 KB, on Hopper 227 KB.
    In the sizes of training nothing spills more than a few bytes of its registers.
    """
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.attention.kernels.triton_launches"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    assert len(found) == 15
    assert max(kernel["shared"] for kernel in found.values()) < 163 * 1024
    usual = {name: kernel["spilled"] for name, kernel in found.items() if name.endswith(("-1", "-4"))}
    assert len(usual) == 9
    assert {name: spilled for name, spilled in usual.items() if spilled > 16} == {}


def test_band_by_device_and_size(monkeypatch):
    """What does not fit in shared memory, or has no kernel, is matrix products; looked up once."""
    pytest.importorskip("triton")
    from phd.attention.kernels.triton_band import TritonBand

    flash._band_class.cache_clear()
    assert flash._band_class("cpu", 1, 64) is Band
    assert flash._band_class("cuda", 64, 128) is flash._band_class("cuda", 32, 256) is TritonBand
    assert flash._band_class("cuda", 65, 64) is flash._band_class("cuda", 33, 256) is Band
    tried = []

    def missing(*name):
        tried.append(name)
        raise ImportError

    monkeypatch.setattr(flash.importlib, "import_module", missing)
    flash._band_class.cache_clear()
    assert flash._band_class("cuda", 1, 64) is flash._band_class("cuda", 1, 64) is Band
    flash._band_class.cache_clear()
    assert len(tried) == 1


def test_launches_on_the_gpu_of_its_inputs(monkeypatch):
    """Triton takes the current one, whichever that is."""
    triton_band = pytest.importorskip("phd.attention.kernels.triton_band")
    current, launches = [None], []

    @contextmanager
    def device_of(tensor):
        current[0] = tensor.device
        yield
        current[0] = None

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **sizes: launches.append(current[0])

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("_forward_kernel", "_query_kernel", "_key_kernel"):
        monkeypatch.setattr(triton_band, name, Kernel())
    query, key = torch.zeros(9, 1, 2, 4, 8), torch.zeros(9, 1, 2, 2, 8)
    band = triton_band.TritonBand(query, 2, torch.zeros(9, dtype=torch.long), 4, 0.3)
    band.merge(query, query[..., 0], query, key, key)
    band.backward(query, query, key, key, query, query[..., 0], query, torch.stack((key, key)))
    assert launches == [torch.device("cpu")] * 3

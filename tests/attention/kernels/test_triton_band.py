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
from tests.world import ROOT


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Of every case; in a process of its own, since Triton reads the variable when it is imported."""
    command = [sys.executable, "-m", "tests.attention.kernels.triton_cases"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 4e-6), ("float16", 2.5e-3)])
def test_equal_to_the_reference(errors, dtype, tolerance):
    """Output and all gradients; tolerances of tests/attention/test_attention.py, fp16's three bits below
    that of bf16, whose products come out wrong under the interpreter.
    """
    cases = {name: error for name, error in errors.items() if name.endswith(dtype)}
    assert len(cases) == 9
    assert {name: error for name, error in cases.items() if not error < tolerance} == {}


def test_halo_equals_the_band_of_the_cpu(errors):
    assert errors["halo"] < 4e-6


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from phd.attention.kernels import triton_band as band

shared = {}
for dim, hidden in ((64, 1), (128, 2), (128, 64), (256, 32)):
    assert band.fits(hidden, dim)
    tile = band._tile(hidden)
    for name in ("_forward_kernel", "_query_kernel", "_key_kernel"):
        kernel = getattr(band, name)
        constants = dict(GROUP=4, ASKING=hidden, HIDDEN=hidden, WINDOW=16, D=dim, ROWS=tile,
                         KEYS=tile, BLOCK_D=dim, HEADS=32, GROUPS=8)
        constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
        types = {}
        for argument in kernel.arg_names:
            if argument in constants:
                types[argument] = "constexpr"
            elif argument in ("q", "k", "v", "out", "do", "dq", "dk", "dv"):
                types[argument] = "*bf16"
            else:
                types[argument] = {"start": "*i64", "lse": "*fp32", "scale": "fp32"}.get(argument, "i32")
        keys = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
        source = ASTSource(kernel, types, keys)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert len(compiled.asm["cubin"]) > 1000
        shared[f"{name}-{dim}-{hidden}"] = compiled.metadata.shared
json.dump(shared, sys.stdout)
"""


def test_compiles_for_hopper(tmp_path):
    """To machine code, in the shared memory that a block may have: on an A100 163 KB, on Hopper 227 KB."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    shared = json.loads(run.stdout)
    assert len(shared) == 12
    assert max(shared.values()) < 163 * 1024


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
    band.backward(query, query, key, key, query, query[..., 0], query)
    assert launches == [torch.device("cpu")] * 3

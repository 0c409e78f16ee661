"""The Triton kernels without a GPU: numbers under the interpreter, and what the compiler makes for Hopper."""

from contextlib import contextmanager

import pytest
import torch

from phd.attention import flash
from phd.attention.band import Band
from tests.interpreter import interpreted


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Of every case."""
    return interpreted("tests.attention.kernels.triton_cases", timeout=900)


@pytest.mark.parametrize(("dtype", "tolerance", "count"), [("float32", 4e-6, 11), ("float16", 2.5e-3, 3)])
def test_equal_to_the_reference(errors, dtype, tolerance, count):
    """Output and all gradients; tolerances of tests/attention/test_attention.py, fp16's three bits below
    that of bf16, whose products come out wrong under the interpreter.
    """
    cases = {name: error for name, error in errors.items() if name.endswith(dtype)}
    assert len(cases) == count
    assert {name: error for name, error in cases.items() if not error < tolerance} == {}


def test_halo_equals_the_band_of_the_cpu(errors):
    assert errors["halo"] < 4e-6


@pytest.mark.parametrize(
    ("usual", "largest"),
    [
        pytest.param(["64-4-4"], [], id="one-size"),
        pytest.param(
            ["64-1-1", "64-4-4", "128-4-4"], ["128-64-64", "256-32-32"], id="all", marks=pytest.mark.slow
        ),
    ],
)
def test_compiles_for_hopper(usual, largest, tmp_path, monkeypatch):
    """To machine code, in the shared memory that a block may have: on an A100 163 KB, on Hopper 227 KB. In
    the sizes of training and of the benchmark nothing spills more than a few bytes of its registers; the
    largest that fit may.
    """
    pytest.importorskip("triton")
    from tests.attention.kernels.triton_launches import measure

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = measure([*usual, *largest], monkeypatch)
    assert len(found) == 3 * len(usual + largest)
    assert max(kernel["shared"] for kernel in found.values()) < 163 * 1024
    spilled = {name: kernel["spilled"] for name, kernel in found.items() if name.endswith(tuple(usual))}
    assert len(spilled) == 3 * len(usual)
    assert {name: number for name, number in spilled.items() if number > 16} == {}


def test_band_by_device_and_size(monkeypatch, request):
    """What does not fit in shared memory, or has no kernel, is matrix products; looked up once."""
    pytest.importorskip("triton")
    from phd.attention.kernels.triton_band import TritonBand

    request.addfinalizer(flash._band_class.cache_clear)  # the answers below are no other test's
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

"""What layers share is made once, and never handed on to where its tensors cannot be used."""

import gc
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from phd.attention import flex, phd_attention, phd_layout
from phd.attention.kept import kept_keys
from phd.attention.kernels import cuda
from phd.attention.layout import make_layout, one_document_layout
from phd.attention.memo import made_once
from phd.attention.pattern import Pattern
from tests.attention.test_attention import random_inputs, run, starts_of

LENGTH = 64
CPU = torch.device("cpu")
DOCUMENTS = starts_of((40, 24), (64,))
SPARSE = Pattern(8, 1, 2)
RULE = {"copies": 2, "window": 4, "chunk": 8}
WAYS = {
    "flash": {"backend": "flash"},
    "flash-sparse": {"backend": "flash", "pattern": SPARSE},
    "flex": {"backend": "flex"},
    "flex-sparse": {"backend": "flex", "pattern": SPARSE},
    "reference": {"backend": "reference", "pattern": SPARSE},
}


@pytest.fixture(autouse=True)
def nothing_made():
    """No test finds what another left."""
    for memory in (one_document_layout, kept_keys, flex.block_mask, cuda._ends):
        memory.cache_clear()


@pytest.fixture(params=WAYS)
def way(request):
    return RULE | WAYS[request.param]


def step(way, convert=lambda x: x, **more):
    """Output, and gradients where the backend has them."""
    inputs = [convert(x) for x in random_inputs(LENGTH, 2 * way["copies"], dim=16, dtype=torch.float32)]
    if way["backend"] == "flex":  # forward only on a CPU
        return [phd_attention(*inputs[:3], **way, **more)]
    return run(phd_attention, inputs, **way, **more)


def fake_step(way, mode=None, **more):
    mode = mode or FakeTensorMode()
    with mode:
        results = step(way, mode.from_tensor, **more)
    assert all(isinstance(x, FakeTensor) and x.fake_mode is mode for x in results)
    return results


def expected(way, **more):
    results = step(
        RULE | {"backend": "reference", "pattern": way.get("pattern")}, torch.Tensor.double, **more
    )
    return results[:1] if way["backend"] == "flex" else results


def assert_right(results, way, **more):
    for result, reference in zip(results, expected(way, **more), strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=1e-5, atol=1e-5)


def test_fake_then_real(way):
    fake_step(way)
    assert_right(step(way), way)


def test_real_then_fake_in_two_modes_in_turns(way):
    shapes = [x.shape for x in step(way)]
    mode = FakeTensorMode()
    for each in (mode, FakeTensorMode(), mode):
        assert [x.shape for x in fake_step(way, each)] == shapes
    assert_right(step(way), way)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
def test_an_evaluation_then_training(way, documents):
    """Tensors made in inference mode cannot be saved for a backward."""
    with torch.inference_mode():
        phd_attention(
            *random_inputs(LENGTH, 4, dim=16, dtype=torch.float32)[:3], document_starts=documents, **way
        )
    assert_right(step(way, document_starts=documents), way, document_starts=documents)


@pytest.mark.parametrize("name", ["flash", "flash-sparse", "flex-sparse"])
def test_a_layout_of_an_evaluation_serves_training(name):
    way, more = RULE | WAYS[name], {"document_starts": DOCUMENTS}
    with torch.inference_mode():
        given = more | {"layout": phd_layout(LENGTH, **RULE, **more)}
        phd_attention(*random_inputs(LENGTH, 4, dim=16, dtype=torch.float32)[:3], **way, **given)
    assert_right(step(way, **given), way, **more)


@pytest.mark.parametrize("first", ["fake", "real"])
def test_a_real_layout_of_packed_documents_under_a_fake_mode(first):
    """Documents are numbers by then. What a sparse layer keeps of them is looked up by the layout itself."""
    way = {"copies": 1, "window": 1, "backend": "flash", "pattern": SPARSE}
    more = {"layout": phd_layout(LENGTH, copies=1, window=1, chunk=None, document_starts=DOCUMENTS)}
    if first == "fake":
        fake_step(way, **more)
    results = step(way, **more)
    if first == "real":
        assert [x.shape for x in fake_step(way, **more)] == [x.shape for x in results]
    arguments = way | {"backend": "reference", "document_starts": DOCUMENTS}
    for result, reference in zip(results, step(arguments, torch.Tensor.double), strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=1e-5, atol=1e-5)


def test_where_packed_sequences_end():
    lengths = (30, 1, 19)
    modes = FakeTensorMode(), nullcontext(), torch.inference_mode(), FakeTensorMode()
    for mode in modes:
        with mode:
            ends = cuda._ends(lengths, CPU)
        assert isinstance(ends, FakeTensor) is isinstance(mode, FakeTensorMode)
        assert not ends.is_inference()
    assert cuda._ends(lengths, CPU).tolist() == [0, 30, 31, 50]


@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode, FakeTensorMode])
def test_layers_share_what_is_made(mode):
    """Under a fake mode too: `phd plan` counts a layout once."""
    with mode():
        layout = make_layout(LENGTH, window=4, chunk=8)
        assert make_layout(LENGTH, window=4, chunk=8, device=CPU) is layout
        assert not layout.start.is_inference()
        assert kept_keys(layout, SPARSE, CPU) is kept_keys(layout, replace(SPARSE), CPU)
        masks = [flex.block_mask(layout, 2, 2, 4, 8, SPARSE, CPU) for _ in range(2)]
        assert masks[0] is masks[1]
        assert cuda._ends((3, 4), CPU) is cuda._ends((3, 4), CPU)


def test_a_device_has_one_entry_by_all_its_names():
    with FakeTensorMode():
        where = torch.empty(0, device="cuda").device  # with a number; the CPU under phd.megatron.cpu's shim
        layout = make_layout(LENGTH, window=4, chunk=8, device=torch.device("cuda"))
        assert layout.start.device == where
        assert make_layout(LENGTH, window=4, chunk=8, device=where) is layout


def test_a_name_that_comes_to_mean_another_device(monkeypatch):
    """The shim of phd.megatron.cpu is installed; another GPU becomes the current one."""
    made = made_once(4)(lambda device: torch.zeros(1, device=device))
    name = torch.device("cuda")

    def landing(function, device):
        return lambda *size, **given: function(
            *size, **given | {"device": device if given["device"] == name else given["device"]}
        )

    for device in (CPU, torch.device("meta")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", landing(torch.empty, device))
            assert made(name).device == device
            assert made(name) is made(device)


def test_the_least_recent_is_forgotten():
    calls = []
    made = made_once(2)(lambda number, device: calls.append(number) or number)
    for number in (1, 2, 1, 3, 1, 2):
        assert made(number, CPU) == number
    assert calls == [1, 2, 3, 2]


@pytest.mark.parametrize("name", ["flash-sparse", "flex"])
def test_what_a_fake_mode_made_goes_with_it(name):
    mode = FakeTensorMode()
    fake_step(RULE | WAYS[name], mode)
    gone = weakref.ref(mode)
    del mode
    gc.collect()
    assert gone() is None


def test_compiled_without_a_break_or_a_warning():
    """torch.compile traces what makes a layout, and keeps nothing of it."""

    def starts(x):
        layout = phd_layout(len(x), **RULE, device=x.device)
        return x + layout.start

    rows = torch.arange(LENGTH)[:, None]
    expected = starts(rows)
    one_document_layout.cache_clear()
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = torch.compile(starts, backend="eager", fullgraph=True)(rows)
    assert torch.equal(found, expected)
    assert not make_layout(LENGTH, window=4, chunk=8).start.is_inference()

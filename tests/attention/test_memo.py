"""What layers share is made once, and never handed on to where its tensors cannot be used."""

import gc
import warnings
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from phd.attention import BACKENDS, Layout, layout
from phd.attention.kept import kept_keys
from phd.attention.kernels import cuda
from phd.attention.memo import made_once
from phd.rules.keys import Blocks
from tests.attention.calls import attend, rule_of
from tests.attention.test_attention import random_inputs, run, starts_of

LENGTH = 64
CPU = torch.device("cpu")
DOCUMENTS = starts_of((40, 24), (64,))
RULE = rule_of(2, 4, 8)
SPARSE = rule_of(2, 4, 8, Blocks(8, 1, 2))
WAYS = {"flash": (RULE, "flash"), "flash-sparse": (SPARSE, "flash"), "reference": (SPARSE, "reference")}


@pytest.fixture(autouse=True)
def nothing_made():
    """Each test begins with an empty cache."""
    for memory in (layout._one_document, kept_keys, cuda._ends):
        memory.cache_clear()


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def inputs_of(rule):
    return random_inputs(LENGTH, 2 * rule.copies.count, dim=16, dtype=torch.float32)


def step(way, convert=lambda x: x, **more):
    """Output and gradients."""
    rule, backend = way
    return run([convert(x) for x in inputs_of(rule)], rule, backend=backend, **more)


def fake_step(way, mode=None, **more):
    mode = mode or FakeTensorMode()
    with mode:
        results = step(way, mode.from_tensor, **more)
    assert all(isinstance(x, FakeTensor) and x.fake_mode is mode for x in results)
    return results


def expected(way, **more):
    return step((way[0], "reference"), torch.Tensor.double, **more)


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
        attend(*inputs_of(way[0])[:3], way[0], backend=way[1], document_starts=documents)
    assert_right(step(way, document_starts=documents), way, document_starts=documents)


def given(query, key, value, layout, *, backend):
    """Attention with a layout that was made before."""
    return BACKENDS[backend](query, key, value, layout)


def test_a_layout_of_an_evaluation_serves_training(way):
    rule, backend = way
    with torch.inference_mode():
        made = Layout.of(rule, LENGTH, document_starts=DOCUMENTS)
        given(*inputs_of(rule)[:3], made, backend=backend)
    results = run(inputs_of(rule), made, function=given, backend=backend)
    assert_right(results, way, document_starts=DOCUMENTS)


@pytest.mark.parametrize("first", ["fake", "real"])
def test_a_real_layout_of_packed_documents_under_a_fake_mode(first):
    """Documents are numbers by then. What a sparse layer keeps of them is looked up by the layout itself."""
    rule = rule_of(1, keys=Blocks(8, 1, 2))
    made = Layout.of(rule, LENGTH, document_starts=DOCUMENTS)

    def real():
        return run(inputs_of(rule), made, function=given, backend="flash")

    def fake():
        with FakeTensorMode() as mode:
            tensors = [mode.from_tensor(x) for x in inputs_of(rule)]
            return run(tensors, made, function=given, backend="flash")

    if first == "fake":
        fake()
    results = real()
    if first == "real":
        assert [x.shape for x in fake()] == [x.shape for x in results]
    assert_right(results, (rule, "flash"), document_starts=DOCUMENTS)


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
        made = Layout.of(SPARSE, LENGTH)
        assert Layout.of(rule_of(2, 4, 8, Blocks(8, 1, 2)), LENGTH, device=CPU) is made
        assert not made.start.is_inference()
        assert kept_keys(made, CPU) is kept_keys(made, CPU)
        assert cuda._ends((3, 4), CPU) is cuda._ends((3, 4), CPU)


def test_a_device_has_one_entry_by_all_its_names():
    with FakeTensorMode():
        where = torch.empty(0, device="cuda").device  # with a number; the CPU under phd.megatron.cpu's shim
        made = Layout.of(RULE, LENGTH, device=torch.device("cuda"))
        assert made.start.device == where
        assert Layout.of(RULE, LENGTH, device=where) is made


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


def test_what_a_fake_mode_made_goes_with_it():
    mode = FakeTensorMode()
    fake_step((SPARSE, "flash"), mode)
    gone = weakref.ref(mode)
    del mode
    gc.collect()
    assert gone() is None


def test_compiled_without_a_break_or_a_warning():
    """torch.compile traces what makes a layout, and keeps nothing of it."""

    def starts(x):
        return x + Layout.of(RULE, len(x), device=x.device).start

    rows = torch.arange(LENGTH)[:, None]
    expected = starts(rows)
    layout._one_document.cache_clear()
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = torch.compile(starts, backend="eager", fullgraph=True)(rows)
    assert torch.equal(found, expected)
    assert not Layout.of(RULE, LENGTH).start.is_inference()

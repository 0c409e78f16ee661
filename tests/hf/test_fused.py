"""Models whose rows attend by the Triton kernel, as on a GPU: under the interpreter, on the CPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from phd.hf import PHDCache, PHDLlamaConfig, PHDLlamaForCausalLM
from phd.hf.modeling import PHDLlamaModel
from tests.interpreter import interpreted
from tests.models import SHAPE

pytest.importorskip("triton")


def test_logits():
    """Of a prompt with padding, and of steps after its static cache."""
    result = interpreted("tests.hf.fused_cases", "PHD-CSWA-3-5-12+vector", "brief", timeout=500)
    assert result["launches"] >= 2 * 3  # layers, steps
    assert len(result["errors"]) == 2
    assert {name: error for name, error in result["errors"].items() if not error < 2e-5} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", ["vanilla", "PHD-2", "PHD-SWA-2-5-inf", "PHD-CSWA-3-5-12", "PHD-CSWA-3-5-12+table"]
)
def test_logits_and_text(variant):
    """In all the ways, growing and static caches; and the text that comes without the kernel."""
    result = interpreted("tests.hf.fused_cases", variant, timeout=500)
    # growing, static, compiled, padded (twice); vanilla takes it after a static cache alone, without padding
    ways = 2 if variant == "vanilla" else 5
    assert result["launches"] >= 2 * ways * 3  # layers, steps
    errors = result["errors"]
    assert errors.pop("generated") == 0
    assert len(errors) == 10
    assert {name: error for name, error in errors.items() if not error < 2e-5} == {}


class Operations(TorchDispatchMode):
    """What was called, views of tensors too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operations_of_a_step(copies: int) -> list[str]:
    """All but views, of one step after a static cache."""
    views = ("view", "expand", "slice", "transpose", "t", "unsqueeze", "select", "alias", "detach", "device")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        config = PHDLlamaConfig(**SHAPE, phd_variant=f"PHD-CSWA-{copies}-16-32")
        model = PHDLlamaForCausalLM(config).eval()
        cache = PHDCache(config, max_cache_len=64)
        for index in range(config.num_hidden_layers):
            keys = torch.zeros(1, 2, 40, 8)
            cache.update(keys, keys, index)
        with Operations() as operations:
            model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    names = [name.split(".")[1].strip("_") for name in operations.names]
    return sorted(name for name in names if name not in views)


@pytest.mark.parametrize("copies", [2, 64])
def test_a_graphed_step_has_vanillas_operations(copies, monkeypatch):
    """So a CUDA graph has no more nodes: they, not bytes, are what a step of a small model waits for."""
    monkeypatch.setattr(PHDLlamaModel, "_fuses", lambda *_: True)
    operations = operations_of_a_step(copies)
    assert operations.count("attend_rows") == SHAPE["num_hidden_layers"]
    assert operations == operations_of_a_step(1)

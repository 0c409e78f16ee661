"""The device shim: stock Megatron on a machine without a GPU.

Megatron asks for CUDA by name in a few hundred places. ``install()`` answers those calls from the CPU:
factories given ``device="cuda"`` allocate in host memory, streams and events are inert, the CUDA random
number generator is the CPU's. It touches nothing where a CUDA device exists. Call it before
Megatron is imported. (A global TorchFunctionMode would be shorter, but costs Python time on every operation.)
"""

import functools
import importlib
import os
from argparse import Namespace
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

# What Megatron needs to be told on a CPU, as parser defaults: a user's own flag wins.
CPU_DEFAULTS: dict[str, Any] = {
    "distributed_backend": "gloo",
    "use_cpu_initialization": True,
    "transformer_impl": "local",
    "attention_backend": "unfused",
    "no_persist_layer_norm": True,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "apply_rope_fusion": False,
    "bias_swiglu_fusion": False,
    "bias_gelu_fusion": False,
    "bias_dropout_fusion": False,
    "num_workers": 0,
}

# What only a GPU has and a training can do without: flag, attribute, its value without, and why.
_GPU_ONLY: tuple[tuple[str, str, Any, str], ...] = (
    ("--cuda-graph-impl", "cuda_graph_impl", "none", "there is nothing to capture"),
    ("--optimizer-cuda-graph", "optimizer_cuda_graph", False, "there is nothing to capture"),
    ("--tp-comm-overlap", "tp_comm_overlap", False, "Transformer Engine would overlap it"),
    ("--async-strategy nvrx", "async_strategy", "mcore", "Megatron's own saves too"),
)

_FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_like", "empty_strided", "eye", "full", "full_like", "linspace"),
    *("ones", "ones_like", "rand", "rand_like", "randint", "randn", "randn_like", "randperm", "tensor"),
    *("zeros", "zeros_like"),
)
_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "to")


_installed = False


class _Inert:
    """A stream, an event or a context manager that does nothing: the CPU runs in program order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "_Inert":
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing

    def query(self) -> bool:
        return True

    def record_event(self, event: object = None) -> "_Inert":
        return _Inert()

    def elapsed_time(self, end_event: object) -> float:
        return 0.0


def needed() -> bool:
    """True where torch sees no CUDA device."""
    return not torch.cuda.is_available()


def switch_off(args: Namespace) -> list[str]:
    """Turn off what only a GPU has, so that a GPU's command line can be tried here; a line on each."""
    lines = []
    for flag, name, off, why in _GPU_ONLY:
        if getattr(args, name) != off:
            setattr(args, name, off)
            lines.append(f"no GPU found: {flag} is switched off, {why}")
    return lines


def install() -> None:
    """Make torch answer CUDA calls from the CPU. Idempotent; does nothing where a CUDA device exists."""
    global _installed
    if not needed() or _installed:
        return
    # Two tables of torch's own functions must be made from the real ones: dynamo's, which Megatron loads, and
    # that of ``with torch.device(...)``, by which transformers makes a model before it loads the weights.
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch.utils._device")._device_constructors()
    _installed = True
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron asks for it with TP; idle here
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    for name in _METHODS:
        setattr(torch.Tensor, name, _on_cpu(getattr(torch.Tensor, name)))
    for owner in (torch.Tensor, torch.nn.Module):
        setattr(owner, "cuda", lambda self, *args, **kwargs: self)  # noqa: B010
    setattr(torch.Tensor, "type", _cuda_spelling(torch.Tensor.type))  # noqa: B010
    for name, answer in _cuda_answers().items():
        setattr(torch.cuda, name, answer)
    torch.cuda.random.get_rng_state = torch.cuda.get_rng_state
    torch.cuda.random.set_rng_state = torch.cuda.set_rng_state
    # Each new iterator of a DataLoader draws a seed for its workers from the CPU's generator. A CUDA device's
    # own generator never sees that; the shared one would give other dropout masks after a resume.
    torch.utils.data.DataLoader.__init__ = functools.partialmethod(  # type: ignore[assignment]
        torch.utils.data.DataLoader.__init__, generator=torch.Generator()
    )
    _import_megatron_uncompiled()


def _import_megatron_uncompiled() -> None:
    """Megatron takes torch.compile as the decorator of its fused functions while it is imported. On a CPU
    that would cost a minute and a C++ compiler; they run as they are written.
    """
    compile_function = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        importlib.import_module("megatron.core")
    finally:
        torch.compile = compile_function


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with every CUDA device among its arguments replaced by the CPU, and no pinned memory,
    which only a CUDA driver can give.
    """
    cpu = torch.device("cpu")

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = cpu
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if any(_is_cuda(arg) for arg in args):
            args = tuple(cpu if _is_cuda(arg) else arg for arg in args)
        return function(*args, **kwargs)

    return wrapper


def _cuda_spelling(type_method: Callable[..., Any]) -> Callable[..., Any]:
    """``Tensor.type()`` with the spelling that the optimizers compare with, such as
    torch.cuda.FloatTensor.
    """

    @functools.wraps(type_method)
    def wrapper(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_method(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    return wrapper


def _cuda_answers() -> dict[str, Any]:
    cpu = torch.device("cpu")
    host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    properties = SimpleNamespace(
        name="CPU", major=0, minor=0, total_memory=host_memory, multi_processor_count=os.cpu_count() or 1
    )
    memory = {
        f"{kind}.all.{when}": 0
        for kind in ("allocated_bytes", "reserved_bytes", "allocation")
        for when in ("current", "peak")
    }
    # "CUDA" shares the CPU's generator: Megatron seeds both alike and swaps in a tensor-parallel rank's own
    # state (its RNG tracker) around what must differ between ranks, such as dropout.
    return {
        "current_device": lambda: cpu,
        "device_count": lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "set_device": _nothing,
        "synchronize": _nothing,
        "empty_cache": _nothing,
        "reset_peak_memory_stats": _nothing,
        "Stream": _Inert,
        "Event": _Inert,
        "stream": _Inert,
        "device": _Inert,
        "current_stream": _Inert,
        "default_stream": _Inert,
        "set_stream": _nothing,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "manual_seed": torch.default_generator.manual_seed,
        "manual_seed_all": _nothing,  # torch.manual_seed calls it after seeding the CPU generator
        "memory_stats": lambda *args, **kwargs: memory,
        "memory_allocated": _zero,
        "max_memory_allocated": _zero,
        "memory_reserved": _zero,
        "max_memory_reserved": _zero,
        "device_memory_used": _zero,
        "get_device_capability": lambda *args: (0, 0),
        "get_device_properties": lambda *args: properties,
        "get_device_name": lambda *args: "CPU",
    }

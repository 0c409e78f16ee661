"""What TritonBand launches, compiled for Hopper as on a GPU.

The launches are recorded, so dtypes, strides and options are those of training in bf16: a number that 16
divides lets the compiler load more at once, and then keep more in shared memory.
"""

import io
import re
from contextlib import nullcontext, redirect_stdout
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from phd.attention.kernels import triton_band

KERNELS = ("_forward_kernel", "_query_kernel", "_key_kernel")
POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
ALIGNED = [["tt.divisibility", 16]]

Launch = tuple[Any, tuple, dict[str, Any]]


class Recorder:
    """In place of a kernel: keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple) -> Any:
        return self.launch

    def launch(self, *arguments: Any, **settings: Any) -> None:
        self.launched: Launch = self.kernel, arguments, settings


def launches(dim: int, hidden: int, query_copies: int) -> dict[str, Launch]:
    """Of a forward and backward at a model width of 2048, with the strides that flash.py hands on."""
    length, copies, heads = 4096, hidden + 1, 2048 // dim
    rows = torch.empty(length, 1, copies, heads, dim, dtype=torch.bfloat16, device="meta")[
        :, :, -query_copies:
    ]
    keys = rows.new_empty(2, length, 1, copies, heads // 4, dim)[:, :, :, 1:]
    # the flash call's, with rows last
    lse = rows.new_empty(copies * heads, length, dtype=torch.float32).T
    lse = lse.unflatten(1, (1, copies, heads))[:, :, -query_copies:]
    start = torch.empty(length, dtype=torch.int64, device="meta")
    band = triton_band.TritonBand(rows, hidden, start, 16, 0.1)
    band.merge(rows, lse, rows, keys[0], keys[1])
    band.backward(rows, rows, keys[0], keys[1], rows, lse, rows, keys)
    return {name: getattr(triton_band, name).launched for name in KERNELS}


def compiled(kernel: Any, arguments: tuple, settings: dict[str, Any]) -> dict[str, int]:
    names = kernel.arg_names
    options = {name: value for name, value in settings.items() if name not in names}
    types, constants, hints = {}, {}, {}
    given = dict(zip(names, arguments, strict=False)) | settings
    for number, name in enumerate(names):
        value = given[name]
        if name in settings or (isinstance(value, int) and value == 1):
            types[name], constants[(number,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[name], hints[(number,)] = POINTERS[value.dtype], ALIGNED
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name] = "i32"
            if value % 16 == 0:
                hints[(number,)] = ALIGNED
    source = ASTSource(kernel, types, constants, hints)
    with redirect_stdout(io.StringIO()) as log:
        result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert len(result.asm["cubin"]) > 1000
    spilled = re.findall(r"(\d+) bytes spill stores", log.getvalue())
    assert spilled, log.getvalue()
    return {"shared": result.metadata.shared, "spilled": max(map(int, spilled))}


def measure(sizes: list[str], patch: pytest.MonkeyPatch) -> dict[str, dict[str, int]]:
    """Bytes of each kernel and size ("64-4-4": head dimension, hidden copies, query copies): shared memory,
    and what its registers spill.
    """
    patch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    patch.setattr(torch.cuda, "device_of", nullcontext)
    for name in KERNELS:
        patch.setattr(triton_band, name, Recorder(getattr(triton_band, name)))
    found = {}
    for size in sizes:
        dim, hidden, query_copies = map(int, size.split("-"))
        assert triton_band.fits(hidden, dim)
        for name, launch in launches(dim, hidden, query_copies).items():
            found[f"{name}-{size}"] = compiled(*launch)
    return found

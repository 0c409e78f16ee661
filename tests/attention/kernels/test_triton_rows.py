"""The kernel of inference's rows without a GPU: numbers under the interpreter, machine code for Hopper."""

from typing import Any

import pytest

from tests.interpreter import interpreted

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from phd.attention.kernels import triton_rows  # noqa: E402


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Of every case."""
    return interpreted("tests.attention.kernels.rows_cases", timeout=300)


@pytest.mark.parametrize(("dtype", "tolerance", "count"), [("float32", 4e-6, 30), ("float16", 2.5e-3, 4)])
def test_equal_to_the_rule(errors, dtype, tolerance, count):
    """The tolerances of test_triton_band.py; bf16's products come out wrong under the interpreter."""
    cases = {name: error for name, error in errors.items() if name.endswith(dtype)}
    assert len(cases) == count
    assert {name: error for name, error in cases.items() if not error < tolerance} == {}


LOADED = ("q", "k", "v", "hidden_k", "hidden_v", "ring_k", "ring_v", "out")
COUNTS = ("end", "padding")
NUMBERS = ("length", "tokens", "columns", "hidden_columns", "splits", "samples", "count", "hidden_count")


def compiled(name: str, dim: int, hidden: int, rows: int) -> Any:
    """A kernel for bf16, with strides and pointers as aligned as real ones are."""
    kernel = getattr(triton_rows, name)
    block_d = triton.next_power_of_2(dim)
    sizes = {
        "GROUPS": 4, "GROUP": 4, "QUERY_COPIES": hidden + 1, "HIDDEN": hidden, "WINDOW": 16, "CHUNK": 32,
        "RING": 15 if hidden else 0, "END": True, "PADDED": True, "D": dim, "KEYS": 8192 // block_d,
        "BLOCK_D": block_d, "ROWS": rows if name == "_split_kernel" else 16,
    }  # fmt: skip
    types, constants, aligned = {}, {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in sizes:
            types[argument], constants[(index,)] = "constexpr", sizes[argument]
            continue
        pointer = "*bf16" if argument in LOADED else "*i64" if argument in COUNTS else "*fp32"
        is_pointer = argument in (*LOADED, *COUNTS, "part_out", "part_lse")
        types[argument] = pointer if is_pointer else "fp32" if argument == "scale" else "i32"
        if argument not in (*NUMBERS, "scale"):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([(128, 1, 16)], id="one-size"),
        pytest.param([(96, 0, 16), (96, 255, 64), (256, 3, 64)], id="others", marks=pytest.mark.slow),
    ],
)
def test_compiles_for_hopper(sizes, tmp_path, monkeypatch):
    """To machine code, in the shared memory that a block may have: on an A100 163 KB, on Hopper 227 KB.
    Sizes: head dimension, hidden copies, rows of a tile.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for size in sizes:
        for name in ("_split_kernel", "_merge_kernel"):
            result = compiled(name, *size)
            assert len(result.asm["cubin"]) > 1000
            assert result.metadata.shared < 163 * 1024

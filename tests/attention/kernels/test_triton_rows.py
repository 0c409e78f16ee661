"""The kernel of inference's rows without a GPU: numbers under the interpreter, machine code for Hopper."""

import json
import os
import subprocess
import sys

import pytest

from tests.interpreter import interpreted
from tests.world import ROOT

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Of every case."""
    return interpreted("tests.attention.kernels.rows_cases", timeout=300)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 4e-6), ("float16", 2.5e-3)])
def test_equal_to_the_rule(errors, dtype, tolerance):
    """The tolerances of test_triton_band.py; bf16's products come out wrong under the interpreter."""
    cases = {name: error for name, error in errors.items() if name.endswith(dtype)}
    assert len(cases) == 30
    assert {name: error for name, error in cases.items() if not error < tolerance} == {}


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from phd.attention.kernels import triton_rows

LOADED = ("q", "k", "v", "hidden_k", "hidden_v", "ring_k", "ring_v", "out")
NUMBERS = ("length", "tokens", "columns", "hidden_columns", "splits", "samples", "count", "hidden_count")
shared = {}
for dim, hidden, rows in ((96, 0, 16), (96, 255, 64), (128, 1, 16), (256, 3, 64)):
    block_d = triton.next_power_of_2(dim)
    sizes = dict(GROUPS=4, GROUP=4, ASKING=hidden + 1, HIDDEN=hidden, WINDOW=16, CHUNK=32,
                 RING=15 if hidden else 0, END=True, PADDED=True, D=dim, KEYS=8192 // block_d,
                 BLOCK_D=block_d)
    for name in ("_split_kernel", "_merge_kernel"):
        kernel = getattr(triton_rows, name)
        constants = sizes | {"ROWS": rows if name == "_split_kernel" else 16}
        types, attributes = {}, {}
        for index, argument in enumerate(kernel.arg_names):
            if argument in constants:
                types[argument] = "constexpr"
                continue
            pointer = "*bf16" if argument in LOADED else "*i64" if argument in ("end", "padding") else "*fp32"
            is_pointer = argument in LOADED or argument in ("end", "padding", "part_out", "part_lse")
            types[argument] = pointer if is_pointer else "fp32" if argument == "scale" else "i32"
            if argument not in NUMBERS and argument != "scale":  # strides and pointers, as real ones are
                attributes[(index,)] = [["tt.divisibility", 16]]
        keys = {(kernel.arg_names.index(key),): value for key, value in constants.items()
                if key in kernel.arg_names}
        source = ASTSource(kernel, types, keys, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert len(compiled.asm["cubin"]) > 1000
        shared[f"{name}-{dim}-{hidden}"] = compiled.metadata.shared
json.dump(shared, sys.stdout)
"""


def test_compiles_for_hopper(tmp_path):
    """To machine code, in the shared memory that a block may have: on an A100 163 KB, on Hopper 227 KB."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", COMPILE]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    shared = json.loads(run.stdout)
    assert len(shared) == 8
    assert max(shared.values()) < 163 * 1024

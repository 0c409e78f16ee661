"""The Triton kernels without a GPU: numbers under the interpreter, and what the compiler makes for Hopper."""

import json
import os
import subprocess
import sys

import pytest

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
for dim in (64, 128):
    for copies in (2, 3):
        for name in ("_forward_kernel", "_query_kernel", "_key_kernel"):
            kernel = getattr(band, name)
            constants = dict(GROUP=4, ASKING=copies - 1, HIDDEN=copies - 1, WINDOW=16, D=dim, ROWS=32,
                             KEYS=32, BLOCK_D=dim, HEADS=32, GROUPS=8)
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
            shared[f"{name}-{dim}-{copies}"] = compiled.metadata.shared
json.dump(shared, sys.stdout)
"""


def test_compiles_for_hopper(tmp_path):
    """To machine code, in far less shared memory than a block may have (227 KB)."""
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
    assert max(shared.values()) < 100_000

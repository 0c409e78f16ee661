"""Triton's interpreter: kernels on CPU tensors."""

import json
import os
import subprocess
import sys
from typing import Any

from tests.world import ROOT


def interpreted(module: str, *arguments: str, timeout: float) -> Any:
    """What ``python -m module`` prints, as JSON. A process of its own, since Triton reads the variable when
    it is imported.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, f"exit status {run.returncode}\n{run.stderr[-3000:]}"
    return json.loads(run.stdout)

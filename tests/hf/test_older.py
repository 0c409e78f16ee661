"""A folder that version 1 of the configuration was saved in, with its own modeling files and its logits."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import phd.hf  # noqa: F401 (registers our model)

ALONE = """
import sys
sys.modules["phd"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
expected = load_file("version_1/expected_logits.safetensors")
model = AutoModelForCausalLM.from_pretrained("version_1", trust_remote_code=True).eval().double()
with torch.no_grad():
    found = model(expected["ids"]).logits
torch.testing.assert_close(found.float(), expected["logits"], rtol=0, atol=1e-5)
"""
"""The recorded logits are fp32, 6.4e-6 away from those of the same weights in fp64, where processors agree;
in fp32 they differ by as much."""


@pytest.fixture
def folder(tmp_path) -> Path:
    with tarfile.open(Path(__file__).with_name("exported_version_1.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "version_1"


def test_by_this_code(folder):
    """Copies, and layers of three kinds; what is saved again is of this version."""
    expected = load_file(folder / "expected_logits.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.config.phd_variant == "PHD-CSWA-2-3-4+1sink.4.1.2-1full-1block-sparse.4.3.1"
    with torch.no_grad():
        found = model.double()(expected["ids"]).logits
    torch.testing.assert_close(found.float(), expected["logits"], rtol=0, atol=1e-5)
    model.save_pretrained(folder / "again")
    again = AutoModelForCausalLM.from_pretrained(folder / "again").eval()
    assert (again.config.phd_variant, again.config.phd_config_version) == (model.config.phd_variant, 2)


@pytest.mark.slow
def test_by_its_own_code(folder):
    """As test_code.py does it with a folder of today."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
    subprocess.run([sys.executable, "-c", ALONE], check=True, cwd=folder.parent, env=environment)

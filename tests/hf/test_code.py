"""What an exported folder carries loads where there is no `phd`."""

import ast
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from phd.hf import PHDLlamaConfig, PHDLlamaForCausalLM
from phd.hf.code import AUTO_MAP, MODULES, write_code

ALONE = """
import sys
sys.modules["phd"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules")
ids = torch.load(sys.argv[1] + "/ids.pt")
with torch.no_grad():
    torch.save([model(ids).logits, model.generate(ids, max_new_tokens=9, do_sample=False)], sys.argv[2])
"""


@pytest.mark.parametrize(
    ("variant", "layers"), [("PHD-CSWA-3-5-12", None), ("vanilla", [[4, 1, 2, None], None, [4, 0, 1, 3]])]
)
def test_loads_without_phd(make_model, ids, tmp_path, variant, layers):
    model = make_model(variant)
    if layers:  # a LongGen hybrid with the same weights
        hybrid = PHDLlamaForCausalLM(PHDLlamaConfig(**model.config.to_dict() | {"phd_patterns": layers}))
        hybrid.load_state_dict(model.state_dict())
        model = hybrid.eval()
    folder, result = tmp_path / "model", tmp_path / "result.pt"
    model.save_pretrained(folder)
    write_code(folder)
    model.config.auto_map = AUTO_MAP
    try:
        model.config.save_pretrained(folder)
    finally:
        del model.config.auto_map
    torch.save(ids[:, :20], folder / "ids.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), str(result)], check=True, cwd=tmp_path, env=environment
    )
    logits, generated = torch.load(result)
    # and by the installed package, which needs no trust
    here = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert here.config.phd_patterns == layers
    with torch.no_grad():
        assert torch.equal(here(ids[:, :20]).logits, logits)
    assert torch.equal(here.generate(ids[:, :20], max_new_tokens=9, do_sample=False), generated)


def test_no_import_of_phd_is_left(tmp_path):
    write_code(tmp_path)
    assert sorted(file.stem for file in tmp_path.iterdir()) == sorted(MODULES.values())
    for file in tmp_path.iterdir():
        for node in ast.walk(ast.parse(file.read_text())):
            assert not isinstance(node, ast.Import) or not node.names[0].name.startswith("phd")
            assert not isinstance(node, ast.ImportFrom) or node.level or not node.module.startswith("phd")

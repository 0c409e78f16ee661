"""What an exported folder carries loads where there is no `phd`."""

import ast
import json
import os
import subprocess
import sys
from copy import deepcopy

import torch
from transformers import AutoModelForCausalLM

from phd.hf.code import AUTO_MAP, carried, write_code

ALONE = """
import sys
sys.modules["phd"] = None
import torch
from transformers import AutoModelForCausalLM
ids = torch.load("ids.pt")
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
    with torch.no_grad():
        result = model(ids).logits, model.generate(ids, max_new_tokens=9, do_sample=False)
    torch.save(result, folder + ".pt")
    model.save_pretrained(folder + "-again")
"""
HYBRID = "1sink.4.1.2-1heads.1sink.1.1.6.1full-1block-sparse.4.3.1"


def test_loads_without_phd(make_model, ids, tmp_path):
    """Copies of tokens, sparse layers, naive repetition; copies with a vector or a table each."""
    variants = {"copies": "PHD-CSWA-3-5-12+vector", "hybrid": HYBRID, "naive": "naive-2-consecutive+table"}
    for name, variant in variants.items():
        deepcopy(make_model(variant)).save_pretrained(tmp_path / name)
    torch.save(ids[:, :20], tmp_path / "ids.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", ALONE, *variants]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    for name in variants:  # transformers itself copies what it loaded
        assert {file.stem for file in (tmp_path / f"{name}-again").glob("*.py")} >= set(carried().values())
    # and by the installed package, which needs no trust
    for name, variant in variants.items():
        logits, generated = torch.load(tmp_path / f"{name}.pt")
        here = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        assert here.config.phd_variant == variant
        with torch.no_grad():
            assert torch.equal(here(ids[:, :20]).logits, logits)
        assert torch.equal(here.generate(ids[:, :20], max_new_tokens=9, do_sample=False), generated)


def test_no_import_of_phd_is_left(tmp_path):
    write_code(tmp_path)
    assert sorted(file.stem for file in tmp_path.iterdir()) == sorted(carried().values())
    for file in tmp_path.iterdir():
        for node in ast.walk(ast.parse(file.read_text())):
            assert not isinstance(node, ast.Import) or not node.names[0].name.startswith("phd")
            assert not isinstance(node, ast.ImportFrom) or node.level or not node.module.startswith("phd")


def test_whoever_saves_it_again_saves_its_code(make_model, tmp_path):
    """A loaded model, its base model, a configuration alone: each folder has the files that it names."""
    first, again, base, alone = (tmp_path / name for name in ("first", "again", "base", "alone"))
    deepcopy(make_model("PHD-CSWA-3-5-12")).save_pretrained(first)
    model = AutoModelForCausalLM.from_pretrained(first)
    model.save_pretrained(again, max_shard_size="20KB")
    model.model.save_pretrained(base)
    model.config.save_pretrained(alone)
    for folder in (first, again, base, alone):
        assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
        assert {file.stem for file in folder.glob("*.py")} == set(carried().values())


def test_a_trainer_saves_the_code(make_model, ids, tmp_path):
    """Its checkpoints and its last model."""
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=1,
    )  # fmt: skip
    rows = [{"input_ids": row[:8], "labels": row[:8]} for row in ids]
    trainer = Trainer(deepcopy(make_model("PHD-SWA-2-5-inf")), settings, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(tmp_path / "last"))
    for name in ("checkpoint-1", "last"):
        assert (tmp_path / name / "modeling_phd.py").is_file()
        AutoModelForCausalLM.from_pretrained(tmp_path / name)


def test_a_merged_adapter_saves_the_code(make_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(deepcopy(make_model("PHD-2")), LoraConfig(target_modules=["q_proj", "v_proj"]))
    adapted.merge_and_unload().save_pretrained(tmp_path)
    assert {file.stem for file in tmp_path.glob("*.py")} == set(carried().values())

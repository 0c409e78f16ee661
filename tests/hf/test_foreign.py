"""Folders that would make transformers run code or fetch it, by every command that reads one."""

import json
import shutil
from argparse import Namespace

import pytest

from phd.commands import serve
from phd.hf.foreign import check_folder
from phd.hf.load import open_folder
from phd.hf.tokenizer import load_tokenizer
from phd.loading import load_model


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "folder")


def change(folder, file, **fields):
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(content | fields))


FIELDS = [
    ("config.json", "_attn_implementation_internal", "someone/kernel"),
    ("config.json", "_attn_implementation", "kernels-community/flash-attn2"),
    ("config.json", "attn_implementation", {"text": "someone/kernel@main"}),
    ("config.json", "_experts_implementation_internal", "someone/kernel"),
    ("config.json", "text_config", {"_attn_implementation_internal": "someone/kernel"}),
    ("config.json", "auto_map", {"AutoModelForCausalLM": "someone/repo--modeling.Model"}),
    ("config.json", "auto_map", {"AutoConfig": "configuration_evil.Config"}),
    ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["someone/repo--tokenizer.Tokenizer", None]}),
    ("generation_config.json", "custom_generate", "someone/repo"),
    ("processor_config.json", "auto_map", {"AutoProcessor": "processor.Processor"}),
]


@pytest.mark.parametrize(("file", "field", "value"), FIELDS)
def test_fields_are_refused_by_name(folder, file, field, value):
    change(folder, file, **{field: value})
    name = field if field != "text_config" else "_attn_implementation_internal"
    with pytest.raises(ValueError, match=f"{file}: {name} = .*: delete the field"):
        check_folder(folder)
    change(folder, file, **{field: None})  # the remedy
    check_folder(folder)


def test_by_every_command(folder):
    """`phd import` opens the folder as the first of these, `phd eval` and `phd generate` load it."""
    change(folder, "config.json", _attn_implementation_internal="someone/kernel")
    settings = Namespace(model=folder, host="127.0.0.1", port=8000, device="cpu", dtype="auto")
    for call in (open_folder, load_model, load_tokenizer, lambda _: serve.run(settings)):
        with pytest.raises(ValueError, match="_attn_implementation_internal"):
            call(folder)


def test_what_phd_and_transformers_write_is_taken(folder):
    auto_map = {"AutoConfig": "configuration_phd.PHDLlamaConfig", "AutoModel": "modeling_phd.PHDLlamaModel"}
    change(
        folder,
        "config.json",
        auto_map=auto_map,
        _attn_implementation="sdpa",
        _attn_implementation_autoset=True,
    )
    open_folder(folder)


def test_an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a peft adapter.*merge it"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="holds a peft adapter.*merge it"):
        load_model(folder)


def test_not_json(folder):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config.json is not JSON"):
        check_folder(folder)

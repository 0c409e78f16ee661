"""Folders that would make transformers run code or fetch it, by every command that reads one."""

import json
import shutil

import pytest
import torch

from phd.commands import serve
from phd.hf.foreign import check_folder
from phd.hf.load import open_folder
from phd.hf.tokenizer import load_tokenizer
from phd.loading import load_model
from tests.commands.test_serve import arguments as serve_arguments


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
    settings = serve_arguments(folder, 8000)
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


def test_an_adapter_is_to_be_merged(folder, tmp_path):
    """Refused alone and beside its model; the remedy, walked, gives a folder with the adapter's logits."""
    from peft import LoraConfig, PeftModel, get_peft_model

    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    model, _ = load_model(folder)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(adapter)
    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.no_grad():
        expected = adapted(ids).logits
    shutil.copy(adapter / "adapter_config.json", folder)
    for refused in (adapter, folder):
        with pytest.raises(ValueError, match="holds a peft adapter.*load that model, merge the adapter"):
            load_model(refused)
    (folder / "adapter_config.json").unlink()

    model, tokenizer = load_model(folder)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    with torch.no_grad():
        torch.testing.assert_close(load_model(merged)[0](ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_not_json(folder):
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config.json is not JSON"):
        check_folder(folder)

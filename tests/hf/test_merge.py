"""A mean of weights, rounded once; what does not belong together is refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from phd.commands.cli import main
from phd.hf import save as save_module
from phd.hf.merge import merge
from tests.models import SHAPE


def save_model(folder, seed, dtype=torch.bfloat16, **changes):
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).to(dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": "bpe", "truncation": seed}))
    return folder


@pytest.fixture
def models(tmp_path):
    """Two of one shape: the second was extended."""
    a = save_model(tmp_path / "a", 1)
    b = save_model(tmp_path / "b", 2, max_position_embeddings=4096, rope_theta=48_880_000.0)
    (b / "training.json").write_text('{"iteration": 104}')
    return a, b


def weights_of(folder):
    files = folder.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def bits(tensor):
    return tensor.view(torch.int16)


def test_mean(models, tmp_path, monkeypatch, capsys):
    """Against float64, rounded to bf16: in shards, and everything else of the first folder."""
    monkeypatch.setattr(save_module.save_weights, "__defaults__", (10_000, lambda name: None))
    a, b = models
    words = ["merge", str(b), str(a), "--weights", "0.25", "0.75", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    first, second, out = weights_of(b), weights_of(a), weights_of(tmp_path / "out")
    assert out.keys() == first.keys()
    for name, tensor in out.items():
        exact = first[name].double() * 0.25 + second[name].double() * 0.75
        assert torch.equal(tensor, exact.float().bfloat16())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.max_position_embeddings == 4096
    assert model.config.rope_parameters["rope_theta"] == 48_880_000.0
    assert "taken: max_position_embeddings 4096 of" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "training.json").read_text())["merged_from"]
    assert [fact["weight"] for fact in facts] == [0.25, 0.75]
    assert [fact["training"] for fact in facts] == [{"iteration": 104}, None]


def test_one_and_zero_is_the_original_bit_for_bit(models, tmp_path):
    """Also where a weight is -0, and where the other model's is no number."""
    a, b = models
    for folder, value in ((a, -0.0), (b, float("nan"))):
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][:] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    merge([a, b], [1.0, 0.0], tmp_path / "out")
    merge([b, a], [0.0, 1.0], tmp_path / "turned")
    before = weights_of(a)
    for folder in (tmp_path / "out", tmp_path / "turned"):
        after = weights_of(folder)
        assert all(torch.equal(bits(after[name]), bits(before[name])) for name in before)
    assert (tmp_path / "out" / "config.json").read_bytes() == (a / "config.json").read_bytes()


def test_phd_models_bring_their_code(make_model, tmp_path):
    model = make_model("PHD-CSWA-3-5-12")
    for name in "ab":
        model.save_pretrained(tmp_path / name)
    merge([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], tmp_path / "out")
    assert (tmp_path / "out" / "modeling_phd.py").is_file()
    before, after = weights_of(tmp_path / "a"), weights_of(tmp_path / "out")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_refusals(models, make_model, tmp_path):
    a, b = models
    wide = save_model(tmp_path / "wide", 1, intermediate_size=64)
    norm = save_model(tmp_path / "norm", 1, rms_norm_eps=1e-5)
    other = shutil.copytree(b, tmp_path / "other")
    (other / "tokenizer.json").write_text(json.dumps({"model": "unigram"}))
    make_model("PHD-2").save_pretrained(tmp_path / "phd")
    for folders, weights, message in (
        (
            [a, wide],
            [0.5, 0.5],
            r"layers\.0\.mlp\.down_proj\.weight: .*a has \[32, 48\], .*wide has \[32, 64\]",
        ),
        ([a, norm], [0.5, 0.5], r"config\.json: rms_norm_eps is 1e-06 in .*a and 1e-05 in .*norm: only"),
        ([a, tmp_path / "phd"], [0.5, 0.5], r"config\.json: .* in .*a and .* in .*phd: only models of one"),
        ([a, other], [0.5, 0.5], r"a and .*other have different tokenizers \(tokenizer\.json\)"),
        ([a, b], [0.5], "--weights has 1 numbers for 2 models"),
        ([a, b], [0.5, 0.6], r"--weights 0\.5 0\.6: they must be numbers that add up to 1"),
        ([a, b], [float("nan"), 1.0], "they must be numbers that add up to 1"),
        ([a], [1.0], "name at least two models"),
        ([a, tmp_path / "none"], [0.5, 0.5], "none/config.json is not there"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(folders, weights, tmp_path / "out")
    with pytest.raises(ValueError, match="b is there already"):
        merge([a, b], [0.5, 0.5], b)
    assert not (tmp_path / "out").exists()

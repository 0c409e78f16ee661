"""A folder is whole or not there; writing holds one shard."""

import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file

from phd.hf.load import FolderTensors, open_folder
from phd.hf.save import new_folder, save_weights


def test_one_file(tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    assert save_weights(tensors.items(), tmp_path) == 20
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], x) for name, x in tensors.items())


def test_shards_hold_no_more_than_they_must(tmp_path):
    """While the last of ten tensors is made, those of earlier shards are gone."""
    alive: list[weakref.ref] = []
    most = 0

    def make():
        nonlocal most
        for index in range(10):
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            tensor = torch.full((100,), float(index))
            alive.append(weakref.ref(tensor))
            yield f"t{index}", tensor
            del tensor

    total = save_weights(make(), tmp_path, shard_bytes=800)
    assert most <= 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total == 4000
    assert sorted(index["weight_map"]) == [f"t{i}" for i in range(10)]
    assert len(set(index["weight_map"].values())) == 5
    folder = FolderTensors(tmp_path)
    assert all(torch.equal(folder.get(f"t{i}"), torch.full((100,), float(i))) for i in range(10))


def test_nothing_is_left_of_a_folder_that_failed(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="out is there already"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "mine").read_text() == "mine"


@pytest.fixture
def saved(make_model, tmp_path):
    make_model("PHD-CSWA-3-5-12").save_pretrained(tmp_path)
    return tmp_path


def test_a_torn_file(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors is torn"):
        open_folder(saved)


def test_a_missing_tensor(saved):
    tensors = load_file(saved / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    (saved / "model.safetensors").unlink()
    save_weights(tensors.items(), saved)
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.up_proj.weight is missing"):
        open_folder(saved)


def test_a_wrong_shape(saved):
    content = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**content, "intermediate_size": 40}))
    with pytest.raises(ValueError, match=r"is \[48, 32\], config.json tells \[40, 32\]"):
        open_folder(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phd_config_version": 99}, "phd_config_version 99, this modeling code reads up to 2"),
        ({"phd_variant": "PHD-CSWA-2-5"}, "phd_variant: 'PHD-CSWA-2-5' names no variant"),
        ({"phd_variant": "PHD-0"}, "phd_variant: .* copies must be at least 1"),
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
    ],
)
def test_a_configuration_that_cannot_be(saved, change, message):
    content = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match=message):
        open_folder(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=name):
        open_folder(saved)

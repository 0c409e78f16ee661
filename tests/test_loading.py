"""Models for inference, straight from a checkpoint and from the folder that it is exported to."""

from argparse import Namespace

import pytest
import torch

from phd import loading


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_checkpoint_is_what_it_is_exported_to(dtype, make_model, tiny_folder, tmp_path, monkeypatch):
    """Rotary frequencies are in fp32 whatever the weights are."""
    exported, tokenizer = loading.load_model(tiny_folder, dtype=dtype)
    stored = make_model("PHD-CSWA-3-5-12+table")
    monkeypatch.setattr(loading, "open_checkpoint", lambda path: (None, Namespace(read=None), 0))
    monkeypatch.setattr(loading, "describe", lambda *arguments: (stored.config, tokenizer))
    monkeypatch.setattr("phd.hf.convert.hf_weights", lambda *arguments: stored.state_dict().items())
    trained, _ = loading.load_model(tmp_path, dtype=dtype)
    tensors = {**exported.state_dict(), **dict(exported.named_buffers())}
    found = {**trained.state_dict(), **dict(trained.named_buffers())}
    assert tensors.keys() == found.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert trained.model.rotary_emb.inv_freq.dtype == torch.float32
    ids = torch.randint(1, 97, (1, 20))
    with torch.no_grad():
        assert torch.equal(trained(ids).logits, exported(ids).logits)

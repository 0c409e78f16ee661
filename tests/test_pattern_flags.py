"""A model's weights in layers that it was not trained with."""

import json
from argparse import ArgumentParser

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from phd.pattern_flags import add_pattern_flags, asked_layers, with_layers
from phd.rules.keys import Blocks, ByHead, Full
from tests.models import SHAPE, VOCABULARY

FULL, SINK = Full(), Blocks(4, 1, 2)


@pytest.fixture(scope="module")
def llama():
    """Of 3 layers with 2 key/value heads."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def asked(flags, config):
    parser = ArgumentParser()
    add_pattern_flags(parser)
    return asked_layers(parser.parse_args(flags.split()), config)


def test_patterns(llama):
    def layers(text):
        return asked(f"--attention-pattern {text}", llama.config)

    assert asked("", llama.config) is None
    assert layers("full") == (FULL, FULL, FULL)
    assert layers("longgen-sink") == (Blocks(), FULL, Blocks())
    assert layers("sink.8.0.4") == (Blocks(8, 0, 4),) * 3
    with pytest.raises(ValueError, match="--attention-pattern: 'swa' is no attention pattern"):
        layers("swa")
    with pytest.raises(ValueError, match="--attention-pattern: .*2 layers, the model 3"):
        layers("2*sink")
    with pytest.raises(ValueError, match="--attention-pattern: .*local must be at least 1, got 0"):
        layers("sink.64.1.0")
    with pytest.raises(
        ValueError, match="--attention-pattern: layer 1 of .* is for 4 key/value heads, and the"
    ):
        layers("heads.1full.3sink")


def test_full_heads(llama, make_model, tmp_path):
    """In layers of the pattern, or of the pattern that the model was trained with."""
    file = tmp_path / "gates.json"
    file.write_text(json.dumps({"gates": [[0.9, 0.1], [0.2, 0.3], [0.8, 0.7]]}))
    kept = (ByHead(((1, FULL), (1, SINK))), SINK, FULL)
    assert asked(f"--attention-pattern sink.4.1.2 --full-heads {file}", llama.config) == kept
    trained = make_model("PHD-2+sink.4.1.2").config
    assert asked(f"--full-heads {file}", trained) == kept
    assert asked(f"--full-heads {file} --full-heads-share 0.1", trained) == (kept[0], SINK, SINK)
    for flags, message in {
        f"--full-heads {file}": f"^--full-heads {file}: .* the attention pattern full has none: write what",
        "--full-heads-share 0.2": "^--full-heads-share is of --full-heads: pass it too",
        f"--attention-pattern sink --full-heads {tmp_path}/no": f"^--full-heads {tmp_path}/no: .* cannot be",
    }.items():
        with pytest.raises(ValueError, match=message):
            asked(flags, llama.config)


def test_kept_whole_they_see_everything(llama):
    """The heads of a layer share nothing but its input: what the full ones give does not change."""
    ids = torch.randint(1, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    heads = with_layers(llama, (ByHead(((1, FULL), (1, Blocks(1, 1, 4)))), FULL, FULL))
    found = []
    for model in (llama, heads):
        attention = model.model.layers[0].self_attn.o_proj
        hook = attention.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        with torch.no_grad():
            model(ids)
        hook.remove()
    whole, some = (x.unflatten(-1, (2, -1)) for x in found)
    torch.testing.assert_close(some[:, :, 0], whole[:, :, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(some[:, :5, 1], whole[:, :5, 1], rtol=1e-5, atol=1e-5)
    assert (some[:, 5:, 1] - whole[:, 5:, 1]).abs().amax(-1).min() > 1e-4


def test_same_weights_other_layers(llama):
    ids = torch.randint(1, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = llama(ids).logits
        same = with_layers(llama, (FULL, FULL, FULL))
        torch.testing.assert_close(same(ids).logits, full, rtol=1e-4, atol=3e-5)
        window = with_layers(llama, (Blocks(4, 0, 2), FULL, Blocks(4, 0, 2)))
        logits = window(ids).logits
    # the first two blocks see everything, the third begins to miss the first
    torch.testing.assert_close(logits[:, :8], full[:, :8], rtol=1e-4, atol=3e-5)
    assert (logits[:, 8] - full[:, 8]).abs().max() > 1e-2
    pointers = [{name: x.data_ptr() for name, x in model.state_dict().items()} for model in (window, llama)]
    assert pointers[0] == pointers[1]  # not copied


def test_copies_stay_and_an_own_pattern_is_replaced(make_model):
    ids = torch.randint(1, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))
    model = make_model("PHD-CSWA-3-5-12+vector")
    sparse = with_layers(model, (SINK, FULL, FULL))
    assert sparse.config.phd_variant == "PHD-CSWA-3-5-12+vector+1sink.4.1.2-2full"
    with torch.no_grad():
        full = model(ids).logits
        assert (sparse(ids).logits - full).abs().max() > 1e-2
        again = with_layers(sparse, (FULL, FULL, FULL))
        torch.testing.assert_close(again(ids).logits, full, rtol=1e-4, atol=3e-5)

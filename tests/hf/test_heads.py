"""Heads of one rule are computed together, wherever they stand."""

import pytest
import torch

from phd.hf import PHDLlamaConfig, PHDLlamaForCausalLM
from phd.hf.heads import by_rule, join, select
from phd.rules.keys import Blocks, Full, parse_keys
from tests.models import SHAPE, assert_close, cache_bytes, reference_logits


def test_by_rule():
    keys = parse_keys("heads.1full.2sink.1full.1sink.1.2.7.1sink")
    assert by_rule(keys) == [((0, 3), Full()), ((1, 2, 5), Blocks()), ((4,), Blocks(1, 2, 7))]


@pytest.mark.parametrize(
    "text", ["heads.1full.2sink.1full", "heads.2full.2sink", "heads.1sink.1full.1sink.1full"]
)
def test_what_is_selected_is_joined_again(text):
    """Three query heads of each key/value head; a view where heads stand side by side."""
    heads = [numbers for numbers, _ in by_rule(parse_keys(text))]
    x = torch.arange(2 * 12 * 5).view(2, 12, 5)
    parts = [select(x, numbers, 3) for numbers in heads]
    for numbers, part in zip(heads, parts, strict=True):
        assert torch.equal(part, torch.cat([x[:, 3 * head : 3 * head + 3] for head in numbers], dim=1))
        assert (part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) is (
            numbers[-1] - numbers[0] == len(numbers) - 1
        )
    assert torch.equal(join([part.transpose(1, 2) for part in parts], heads), x.transpose(1, 2))


@pytest.mark.parametrize("variant", ["", "PHD-CSWA-3-5-12+"])
def test_scattered_heads(variant, ids):
    """A prompt and steps after it, over borders of blocks, against the dense rule; grouped queries."""
    shape = SHAPE | {
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
    }
    name = f"{variant}1heads.1sink.4.1.2.1full.1sink.4.1.2.1full-1heads.1full.1sink.1.2.7.2full"
    torch.manual_seed(1)
    model = PHDLlamaForCausalLM(PHDLlamaConfig(**shape, phd_variant=name)).double().eval()
    expected = reference_logits(model, ids[:, :40])
    with torch.no_grad():
        assert_close(model(ids[:, :40], use_cache=False).logits, expected)
        cache = None
        for first, last in ((0, 14), *((i, i + 1) for i in range(14, 21)), (21, 40)):
            output = model(ids[:, first:last], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            assert_close(output.logits, expected[:, first:last])
            assert cache.nbytes() == cache_bytes(model.config, last, len(ids), element_size=8)

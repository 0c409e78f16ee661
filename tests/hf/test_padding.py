"""Padded batches follow each sample's own positions; other masks and positions are refused."""

from copy import deepcopy

import pytest
import torch
from transformers import LlamaForCausalLM

from phd.hf import PHDCache
from tests.models import assert_close, left_padded


@pytest.mark.parametrize("padding", [1, 6, 13])
def test_left_padding(model, expected, ids, padding):
    """The second sample is shorter; chunks follow its own positions."""
    padded, mask = left_padded(ids, padding)
    with torch.no_grad():
        logits = model(padded, attention_mask=mask, use_cache=False).logits
        assert_close(logits[0], expected[0])
        assert_close(logits[1, padding:], expected[1, :-padding])
        for length in range(padding + 1, 40, 5):
            output = model(padded[:, :length], attention_mask=mask[:, :length], logits_to_keep=1)
            for position in range(length, length + 14):
                assert_close(output.logits[0, -1], expected[0, position - 1])
                assert_close(output.logits[1, -1], expected[1, position - 1 - padding])
                step = padded[:, position : position + 1]
                cache = output.past_key_values
                output = model(step, attention_mask=mask[:, : position + 1], past_key_values=cache)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_costs_no_mask(model, expected, ids, implementation, monkeypatch):
    """Padded batches to train on run as packed documents do: no blocks."""
    monkeypatch.delattr("phd.hf.modeling.BlocksStep")
    padded, mask = left_padded(ids, 6)
    model = deepcopy(model)
    model.set_attn_implementation(implementation)
    logits = model(padded, attention_mask=mask).logits
    assert_close(logits[0], expected[0])
    assert_close(logits[1, 6:], expected[1, :-6])


def test_padding_on_both_sides(model, expected, ids):
    padded, mask = left_padded(ids, 6)
    mask[0, 60:] = mask[1, 50:] = 0
    for count in (40, 70):
        with torch.no_grad():
            logits = model(padded[:, :count], attention_mask=mask[:, :count], use_cache=False).logits
        assert_close(logits[0, :60], expected[0, : min(count, 60)])
        assert_close(logits[1, 6:50], expected[1, : min(count, 50) - 6])


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


def test_positions_that_say_the_same(model, expected, ids):
    padded, mask = left_padded(ids, 6)
    with torch.no_grad():
        cache = model(padded[:, :20], attention_mask=mask[:, :20], position_ids=positions(mask)[:, :20])
        given = {"attention_mask": mask[:, :30], "position_ids": positions(mask)[:, 20:30]}
        logits = model(padded[:, 20:30], past_key_values=cache.past_key_values, **given).logits
        assert_close(logits[1], expected[1, 14:24])
        logits = model(ids, position_ids=torch.arange(76).expand(2, -1), use_cache=False).logits
        assert_close(logits, expected)


CAUSAL = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position_ids": torch.arange(20)[None] % 12}, "put packed documents into rows of their own"),
        ({"position_ids": torch.arange(20)[None] + 5}, "do not count each row's tokens from 0"),
        ({"position_ids": (torch.arange(20)[None] - 3).clamp(min=0)}, "where attention_mask has them"),
        ({"attention_mask": (torch.arange(20) != 7).expand(2, -1)}, "attention_mask has a gap"),
        ({"attention_mask": torch.ones(2, 19)}, "attention_mask has 19 columns of 20"),
        ({"attention_mask": CAUSAL}, "must be .samples, columns so far.: a PHD model makes masks"),
    ],
    ids=["packed", "offset", "padding without a mask", "gap", "short", "4d"],
)
def test_masks_and_positions_that_are_refused(make_model, ids, settings, message, static):
    """What would be misread; a Llama, and so K = 1, takes them."""
    for variant in ("PHD-2", "PHD-CSWA-3-5-12"):
        model = make_model(variant)
        cache = PHDCache(model.config, max_cache_len=40 if static else None)
        with pytest.raises(ValueError, match=message):
            model(ids[:, :20], past_key_values=cache, **settings)
        if settings.get("attention_mask") is CAUSAL:  # at a static cache's steps too
            model(ids[:, :19], past_key_values=cache)
            with pytest.raises(ValueError, match=message):
                model(ids[:, 19:20], past_key_values=cache, **settings)


def test_k_1_takes_what_llama_takes(make_model, ids):
    model = make_model("vanilla")
    llama = LlamaForCausalLM(model.config).eval()
    llama.load_state_dict(model.state_dict())
    packed = torch.arange(20)[None] % 12
    gap = (torch.arange(20) != 7).expand(2, -1)
    for settings in ({"position_ids": packed}, {"attention_mask": gap}, {"attention_mask": CAUSAL}):
        settings |= {"use_cache": False}
        with torch.no_grad():
            ours, theirs = (m(ids[:, :20], **settings).logits for m in (model, llama))
        assert_close(ours, theirs)

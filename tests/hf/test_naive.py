"""Naive repetition: a Llama on every token K times, whose cache counts tokens."""

from copy import deepcopy

import pytest
import torch

from phd.hf import PHDCache
from tests.models import assert_close, cache_bytes, left_padded, llama_logits

KINDS = ("naive-2", "naive-3-consecutive", "naive-2-consecutive+table", "naive-3+vector")
PROMPT = 17


@pytest.fixture(params=KINDS)
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture(scope="module")
def ids(ids):
    return ids[:, :48]


@pytest.fixture
def expected(model, ids):
    return llama_logits(model, ids)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_is_llama_on_repeated_tokens(model, expected, ids, implementation):
    model = deepcopy(model)
    model.set_attn_implementation(implementation)
    assert_close(model(ids, use_cache=False).logits, expected)
    with torch.no_grad():
        assert_close(model(ids, logits_to_keep=3).logits, expected[:, -3:])


def test_kinds_differ(make_model, ids):
    logits = [llama_logits(make_model(name), ids)[:, -1] for name in (*KINDS, "naive-2-consecutive", "PHD-2")]
    for index, one in enumerate(logits):
        assert all((one - other).abs().max() > 0.05 for other in logits[index + 1 :])


@pytest.mark.parametrize("step", [1, 7, 33])
def test_decoding(model, expected, ids, step):
    """In chunks of any size; the cache is as large as told all along, and has every copy."""
    cache, logits, copies = PHDCache(model.config), [], model.config.copies.count
    with torch.no_grad():
        for first in range(0, ids.shape[1], step):
            logits.append(model(ids[:, first : first + step], past_key_values=cache).logits)
            length = cache.get_seq_length()
            assert length == min(first + step, ids.shape[1])
            assert cache.layers[0].keys.shape == (2, 2, copies * length, 8)
            assert cache.nbytes() == cache_bytes(model.config, length, 2)
    assert_close(torch.cat(logits, dim=1), expected)


@pytest.mark.parametrize("padding", [1, 6])
def test_left_padding(model, expected, ids, padding):
    padded, mask = left_padded(ids, padding)
    with torch.no_grad():
        logits = model(padded, attention_mask=mask, use_cache=False).logits
        assert_close(logits[0], expected[0])
        assert_close(logits[1, padding:], expected[1, :-padding])
        output = model(padded[:, :20], attention_mask=mask[:, :20], logits_to_keep=1)
        for begin, end in ((20, 21), (21, 28), (28, 29)):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, begin:end]
            output = model(
                padded[:, begin:end],
                attention_mask=mask[:, :end],
                position_ids=positions,
                past_key_values=output.past_key_values,
            )
            assert_close(output.logits[0], expected[0, begin:end])
            assert_close(output.logits[1], expected[1, begin - padding : end - padding])


def test_padding_on_the_right(model, expected, ids):
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    assert_close(logits[0], expected[0])
    assert_close(logits[1, :30], expected[1, :30])


def test_rollback(model, expected, ids):
    """Whole tokens are removed, and nothing needs to be recomputed."""
    with torch.no_grad():
        cache = model(ids[:, :30]).past_key_values
        cache.crop(-5)
        cache.drop_hidden()
        assert (cache.get_seq_length(), cache.nbytes()) == (25, cache_bytes(model.config, 25, 2))
        assert_close(model(ids[:, 25:40], past_key_values=cache).logits, expected[:, 25:40])


def test_generate(model, ids):
    """With a cache and without: greedy with padding, beams, and assisted decoding, which rolls back."""
    prompt, mask = left_padded(ids[:, :PROMPT], 5)
    settings = {"max_new_tokens": 12, "do_sample": False}
    for more in ({}, {"num_beams": 3}):
        inputs = settings | more | {"attention_mask": mask}
        without = model.generate(prompt, use_cache=False, **inputs)
        assert torch.equal(model.generate(prompt, **inputs), without)
    plain = model.generate(ids[:1, :PROMPT], use_cache=False, **settings)
    assert torch.equal(model.generate(ids[:1, :PROMPT], prompt_lookup_num_tokens=3, **settings), plain)


def test_gradients(model, ids):
    """Those of Llama on repeated tokens, by an independent attention; checkpointing changes none."""
    model = deepcopy(model).train()
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 3, -100)
    found = []
    for implementation, checkpointing in (("sdpa", False), ("eager", False), ("sdpa", True)):
        model.set_attn_implementation(implementation)
        if checkpointing:
            model.activation_checkpointing_enable()
        found.append(torch.autograd.grad(model(ids, labels=labels).loss, [*model.parameters()]))
    for one, other, again in zip(*found, strict=True):
        assert one.abs().max() > 0
        assert (one - other).abs().max() <= 2e-5 * other.abs().max()
        assert (one - again).abs().max() <= 2e-5 * one.abs().max()


def test_what_is_refused(make_model, ids):
    model = make_model("naive-2")
    for call in (
        lambda: PHDCache(model.config, max_cache_len=40),
        lambda: model.generate(ids[:, :5], max_new_tokens=2, cache_implementation="static"),
    ):
        with pytest.raises(ValueError, match="static cache: naive repetition takes a growing one alone"):
            call()
    with pytest.raises(ValueError, match="put packed documents into rows of their own"):
        model(ids[:, :20], position_ids=torch.arange(20)[None] % 12)


def test_layers_on_several_devices(make_model, ids):
    """What a layer is called with goes to its device."""
    from phd.hf.steps.naive import NaiveStep

    model = make_model("naive-2")
    padded, mask = left_padded(ids, 6)
    embeddings = model.model.embed_tokens(padded)
    from phd.hf.padding import read_padding

    padding = read_padding(mask, None, 0, ids.shape[1], embeddings.device)
    moved = NaiveStep(model.config, embeddings, padding, None, 0).to("meta")
    assert moved.rows.mask.device.type == moved.rows.positions.device.type == "meta"
    assert moved.positions.device.type == moved.to("meta").positions.device.type == "meta"

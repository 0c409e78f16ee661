"""How large the cache is at every step, and what is in it."""

from copy import deepcopy

import pytest
import torch

from phd.hf import PHDCache
from phd.rules.copies import Copies
from phd.rules.variant import Variant
from tests.models import VARIANTS, cache_bytes


def entries(cache: PHDCache) -> tuple[int, int]:
    """Originals and hidden entries of the first layer."""
    layer = cache.phd_layers[0]
    keys, hidden = layer.keys, layer.hidden_keys
    assert keys is not None
    return keys.shape[2], 0 if hidden is None else hidden.shape[2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_size_at_every_step(variant, make_model, ids):
    copies = Copies.parse(variant)
    model = make_model(variant)
    with torch.no_grad():
        cache = model(ids[:, :1]).past_key_values
        for length in range(1, 70):
            hidden = min(copies.window - 1, length % copies.chunk if copies.chunk else length)
            assert entries(cache) == (length, hidden * copies.hidden)
            assert cache.nbytes() == cache_bytes(model.config, length, 2)
            model(ids[:, length : length + 1], past_key_values=cache)
    vanilla = cache_bytes(make_model("vanilla").config, length, 2)
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == vanilla * 70 // length


@pytest.mark.parametrize("variant", VARIANTS)
def test_size_after_a_prompt(variant, make_model, ids):
    """A prompt leaves no more than steps do, however long it is; storage included."""
    model = make_model(variant)
    with torch.no_grad():
        for length in (1, 12, 40, 70):
            cache = model(ids[:, :length], logits_to_keep=1).past_key_values
            assert cache.nbytes() == cache_bytes(model.config, length, 2)
            for layer in cache.phd_layers:
                for hidden in (layer.hidden_keys, layer.hidden_values):
                    assert hidden.untyped_storage().nbytes() == hidden.nbytes


def test_originals_are_a_vanilla_models(make_model, ids):
    """Bit for bit equal: that is why a vanilla model's cache is enough."""
    vanilla, model = make_model("vanilla"), deepcopy(make_model("PHD-CSWA-3-5-12"))
    model.load_state_dict(vanilla.state_dict())
    with torch.no_grad():
        ours, theirs = (m(ids[:, :40], logits_to_keep=1).past_key_values for m in (model, vanilla))
    for layer, expected in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(layer.keys, expected.keys)
        assert torch.equal(layer.values, expected.values)


@pytest.mark.parametrize("variant", ["PHD-2", "PHD-CSWA-3-5-12"])
def test_static_is_allocated_once(variant, make_model, ids):
    model = make_model(variant)
    cache = PHDCache(model.config, max_cache_len=50)
    with torch.no_grad():
        model(ids[:, :9], past_key_values=cache, logits_to_keep=1)
        room = deepcopy(model.config)
        copies = model.config.copies
        # whatever the chunk, for W - 1 positions' hidden copies
        room.phd_variant = str(Variant(Copies(copies.count, copies.window)))
        assert cache.nbytes() == cache_bytes(room, 50, 2)
        places = [layer.hidden_keys.data_ptr() for layer in cache.phd_layers]
        for position in range(9, 20):
            model(ids[:, position : position + 1], past_key_values=cache)
    assert [layer.hidden_keys.data_ptr() for layer in cache.phd_layers] == places
    with pytest.raises(ValueError, match="static cache cannot be rolled back"):
        cache.drop_hidden()


def test_samples_reordered_repeated_selected(make_model, ids):
    """As beam search does: later logits are those of the samples that were taken."""
    model = make_model("PHD-CSWA-3-5-12")
    step = ids[:1, 30:31].expand(2, 1)
    for change, taken in (
        (lambda cache: cache.reorder_cache(torch.tensor([1, 1])), [1, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: (cache.batch_repeat_interleave(2), cache.batch_select_indices([0, 1])), [0, 0]),
    ):
        with torch.no_grad():
            cache = model(ids[:, :30]).past_key_values
            change(cache)
            cache.crop(-2)  # the ids were reordered too
            again = model(torch.cat([ids[taken, 28:30], step], 1), past_key_values=cache).logits
            expected = model(torch.cat([ids[taken, :30], step], 1)).logits[:, -3:]
        torch.testing.assert_close(again, expected, rtol=1e-4, atol=3e-5)


def test_reset(make_model, ids):
    model = make_model("PHD-CSWA-3-5-12")
    for cache in (PHDCache(model.config), PHDCache(model.config, max_cache_len=40)):
        with torch.no_grad():
            first = model(ids[:, :9], past_key_values=cache).logits
            cache.reset()
            assert torch.equal(model(ids[:, :9], past_key_values=cache).logits, first)


def test_keys_outside_the_window_change_nothing(make_model, ids):
    """In one attention call: new numbers in hidden keys that the rule hides, and in those it does not."""
    from phd.hf.attend import attend
    from phd.hf.padding import UNPADDED
    from phd.hf.steps.blocks import BlocksStep

    model = make_model("PHD-CSWA-3-5-12")
    embeddings = model.model.embed_tokens(ids[:, :30])
    rules = model.config.rules
    step = BlocksStep(model.config, rules, embeddings, None, UNPADDED, None, 0, 30, fused=False, layouts={})
    (block,) = step.blocks(rules[0], embeddings)
    rows = block.rows.stop - block.rows.start
    query, key = torch.randn(1, 4, rows, 8), torch.randn(1, 2, block.mask.shape[-1], 8)
    seen = (block.mask == 0)[0, 0]
    nothing = torch.empty(1, 2, 0, 8)
    before = attend(query, (nothing, nothing, None), (key, key, block.mask), 0.3)
    for row in (35, 60, 80):
        changed = key.clone()
        changed[:, :, row] += 1
        after = attend(query, (nothing, nothing, None), (changed, changed, block.mask), 0.3)
        differs = (after != before).flatten(2).any(-1)[0]
        assert torch.equal(differs, seen[:, row])
        assert differs.any() and not differs.all()

"""Hybrids of full and sparse layers (LongGen): every way through the model against the dense rule, and what
the cache holds at every length.
"""

import itertools
import json
from copy import deepcopy

import pytest
import torch

from phd.hf import PHDCache, PHDLlamaConfig, PHDLlamaForCausalLM
from phd.rules.copies import Copies
from phd.rules.keys import Blocks, Full
from phd.rules.pattern import LayerPattern
from phd.rules.variant import Variant
from tests.models import SHAPE, cache_bytes, reference_logits

SINK, STRIDE, BOTH = [4, 1, 2, None], [4, 0, 1, 3], [4, 1, 2, 3]
HYBRIDS = {
    "sink": [SINK, None, SINK],
    "block-sparse": [STRIDE, None, STRIDE],
    "mixed": [None, BOTH, [1, 2, 3, 2]],
    "no full layer": [SINK, BOTH, STRIDE],
    # of two key/value heads: full beside tokens, blocks beside blocks
    "heads": "1heads.1full.1sink.1.2.7-1heads.1sink.4.1.2.1blocks.4.1.2.3-1heads.1sink.4.1.3.1full",
}
KINDS = ["vanilla", "PHD-SWA-2-5-inf", "PHD-CSWA-3-5-12"]
CASES = [("vanilla", "mixed"), ("vanilla", "sink"), ("PHD-SWA-2-5-inf", "no full layer")]
CASES += [("PHD-CSWA-3-5-12", "mixed"), ("PHD-CSWA-2-16-32", "block-sparse")]
CASES += [("vanilla", "heads"), ("PHD-CSWA-3-5-12", "heads")]


@pytest.fixture(scope="module")
def ids(ids):
    """Twelve blocks and a bit are enough."""
    return ids[:, :50]


@pytest.fixture(scope="module")
def make():
    """make("PHD-SWA-2-5-inf", layers): as ``make_model``, in fp64 for what RMSNorm leaves of it."""
    models: dict = {}

    def build(variant: str, layers: list | str | None):
        key = variant, json.dumps(layers)
        if key not in models:
            shape, pattern = SHAPE, LayerPattern.parse(layers if isinstance(layers, str) else "full")
            if isinstance(layers, list):
                shape = SHAPE | {"num_hidden_layers": len(layers)}
                pattern = LayerPattern.of(tuple(Full() if x is None else Blocks(*x) for x in layers))
            name = str(Variant(Copies.parse(variant), pattern))
            config = PHDLlamaConfig(**shape, phd_variant=name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                models[key] = PHDLlamaForCausalLM(config).double().eval()
        return models[key]

    return build


@pytest.fixture(params=CASES, ids=lambda case: " ".join(case))
def model(request, make):
    variant, hybrid = request.param
    return make(variant, HYBRIDS[hybrid])


@pytest.fixture
def expected(model, ids):
    return reference_logits(model, ids)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """RMSNorm and eager attention round to fp32."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def run(model, ids: torch.Tensor, step: int, cache: PHDCache | None = None) -> torch.Tensor:
    """All logits, ``step`` columns at a time; the cache is as large as told all along."""
    logits = []
    with torch.no_grad():
        for first in range(0, ids.shape[1], step):
            output = model(ids[:, first : first + step], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
            length = min(first + step, ids.shape[1])
            assert cache.get_seq_length() == length
            assert cache.nbytes() == cache_bytes(model.config, length, len(ids), element_size=8)
    return torch.cat(logits, dim=1)


def test_patterns_matter(make, ids):
    logits = [reference_logits(make("vanilla", layers), ids)[:, -1] for layers in (None, *HYBRIDS.values())]
    for index, one in enumerate(logits):
        assert all((one - other).abs().max() > 0.05 for other in logits[index + 1 :])


def test_prompt(model, expected, ids):
    with torch.no_grad():
        assert_close(model(ids, use_cache=False).logits, expected)
        for length in (1, 4, 5, 30, 50):
            output = model(ids[:, :length], logits_to_keep=1)
            assert_close(output.logits[:, 0], expected[:, length - 1])
            for layer in output.past_key_values.layers:  # no view of the whole prompt
                for store in layer.stores():
                    assert store.keys.untyped_storage().nbytes() == store.keys.nbytes


@pytest.mark.parametrize("step", [1, 7, 33])
def test_steps_and_chunks(model, expected, ids, step):
    """Over many borders between blocks, one prompt in parts and token by token."""
    assert_close(run(model, ids, step), expected)


def test_slices_of_a_long_chunk(make, monkeypatch):
    """More new slots than a sparse layer takes at a time."""
    monkeypatch.setattr("phd.hf.steps.blocks.SLICE", 10)
    model = make("PHD-SWA-2-5-inf", HYBRIDS["mixed"])
    ids = torch.randint(1, 97, (1, 76), generator=torch.Generator().manual_seed(3))
    assert_close(run(model, ids, 33), reference_logits(model, ids))


@pytest.mark.parametrize(("padding", "step"), [(1, 9), (4, 40), (6, 1), (13, 9)])
def test_left_padding(model, expected, ids, padding, step):
    """Blocks begin at each sample's first token."""
    padded = torch.stack([ids[0], ids[1].roll(padding)])[:, :40]
    mask = torch.ones_like(padded)
    mask[1, :padding] = 0
    cache, logits = None, []
    with torch.no_grad():
        for first in range(0, 40, step):
            end = min(first + step, 40)
            output = model(
                padded[:, first:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            logits.append(output.logits)
    both = torch.cat(logits, dim=1)
    assert_close(both[0], expected[0, :40])
    assert_close(both[1, padding:], expected[1, : 40 - padding])


@pytest.mark.parametrize("keys", ["sink.64.1.5", "sink.1.64.256"])
def test_full_heads_beside_duo_attention_s_windows(make, keys):
    """A sink of 64 and some 256 recent positions: a prompt and then token by token, over the borders where
    blocks begin and where the first key is evicted.
    """
    model = make("vanilla", f"1heads.1full.1{keys}-1{keys}-1heads.1{keys}.1full")
    ids = torch.randint(1, 97, (1, 386), generator=torch.Generator().manual_seed(4))
    expected = reference_logits(model, ids)
    with torch.no_grad():
        for first, last in ((62, 66), (318, 323), (382, 386)):
            cache = model(ids[:, :first], logits_to_keep=1).past_key_values
            for position in range(first, last):
                logits = model(ids[:, position : position + 1], past_key_values=cache).logits
                assert_close(logits[:, 0], expected[:, position])
                assert cache.nbytes() == cache_bytes(model.config, position + 1, element_size=8)


def test_bytes_of_full_heads():
    """A quarter of the heads whole at 32000 tokens: 0.2575 of full layers by tokens, and 0.2590 at most by
    blocks; by the tensors of a cache, without memory.
    """
    shape = {"num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 1024}
    for keys, length, share in (
        ("1.64.256", 32000, 0.2575),
        ("64.1.5", 32000, 0.2575),
        ("64.1.5", 32063, 0.259),
    ):
        name = f"heads.2full.6sink.{keys}"
        cache = PHDCache(PHDLlamaConfig(**shape, phd_variant=name))
        full = 0
        for layer in range(2):
            tensors = torch.empty(2, 1, 8, length, 128, dtype=torch.bfloat16, device="meta")
            cache.update(*tensors, layer)
            full += tensors.nbytes
        assert cache.nbytes() == cache_bytes(
            PHDLlamaConfig(**shape, phd_variant=name), length, element_size=2
        )
        assert cache.nbytes() / full == pytest.approx(share, abs=5e-5)


def test_size_at_128k():
    """Llama-2 7B, 12 full layers of 32: 26.5 of 69.2 GB in the paper."""
    shape = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
    ratios = {}
    for name, pattern in (("sink", [64, 1, 32, None]), ("block-sparse", [64, 0, 1, 64])):
        layers = [*[pattern] * 10, *[None] * 12, *[pattern] * 10]
        hybrid = cache_bytes(PHDLlamaConfig(**shape, phd_patterns=layers), 131072)
        ratios[name] = hybrid / cache_bytes(PHDLlamaConfig(**shape), 131072)
    assert ratios == pytest.approx({"sink": 0.385, "block-sparse": 0.385}, abs=5e-4)


def test_size_at_128k_by_the_tensors():
    """As a prompt leaves the cache: tensors of the true sizes, without memory. The paper: 26.5 GB."""
    layers = [*[[64, 1, 32, None]] * 10, *[None] * 12, *[[64, 1, 32, None]] * 10]
    shape = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
    cache = PHDCache(PHDLlamaConfig(**shape, phd_copies=1, phd_patterns=layers))
    full = 0
    for layer in range(32):
        keys, values = torch.empty(2, 1, 32, 131072, 128, dtype=torch.bfloat16, device="meta")
        cache.update(keys, values, layer)
        full += keys.nbytes + values.nbytes
    assert cache.nbytes() / full == pytest.approx(0.385, abs=5e-4)
    assert cache.nbytes() / 1e9 == pytest.approx(26.5, abs=0.1)


@pytest.mark.parametrize("layer", [SINK, STRIDE, BOTH])
@pytest.mark.parametrize("step", [40, 1, 7])
def test_what_a_query_keeps(make, ids, layer, step):
    """A one-layer model: another token changes the logits where the rule keeps it, nowhere else; in prompts,
    steps and chunks alike.
    """
    model, kept = make("vanilla", [layer]), Blocks(*layer)
    before = run(model, ids[:1, :40], step)
    for position in (0, 3, 5, 14, 24, 33):
        changed = ids[:1, :40].clone()
        changed[0, position] = 1 + changed[0, position] % 96
        after = run(model, changed, step)
        query = torch.arange(40)
        seen = (query >= position) & kept.keeps(query, position)
        assert torch.equal((after != before).any(-1)[0], seen)
    hybrid = make("vanilla", [layer, None])
    logits = [run(hybrid, x, step) for x in (ids[:1, :40], changed)]
    assert (logits[0] != logits[1]).any(-1)[0, position:].all()


@pytest.mark.parametrize("variant", KINDS)
def test_short_sequences_see_everything(make, ids, variant):
    model, full = make(variant, [SINK, BOTH, SINK]), make(variant, None)
    short = ids[:, :12]  # the first block and the last two
    for step in (1, 5, 12):
        assert_close(run(model, short, step), run(full, short, step))


@pytest.mark.parametrize("variant", KINDS)
def test_all_full_is_the_plain_model(make, ids, variant):
    model, plain = make(variant, [None] * 3), make(variant, None)
    for step in (5, 50):
        assert torch.equal(run(model, ids, step), run(plain, ids, step))


@pytest.mark.parametrize(
    ("variant", "hybrid"), [*((kind, "mixed") for kind in KINDS), ("PHD-CSWA-3-5-12", "heads")]
)
def test_gradients(make, ids, variant, hybrid):
    """Of a prompt and of a padded batch, against the dense rule on its samples one by one."""
    model = deepcopy(make(variant, HYBRIDS[hybrid]))
    parameters = list(model.parameters())
    mask = torch.ones_like(ids[:, :30])
    mask[1, :5] = 0

    def gradients(samples, first=0, **settings):
        logits = model(samples, use_cache=False, **settings).logits[:, first:]
        return torch.autograd.grad(logits.logsumexp(-1).square().sum(), parameters)

    prompt = gradients(ids[:1, :30])
    padded = gradients(ids[:, :30], 5, attention_mask=mask)
    model.set_attn_implementation("eager")
    dense = gradients(ids[:1, :30])
    parts = gradients(ids[:1, :30], 5), gradients(ids[1:, 5:30])
    for one, other in zip(prompt, dense, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    for both, *alone in zip(padded, *parts, strict=True):
        assert (both - sum(alone)).abs().max() <= 1e-5 * both.abs().max()


def test_rolling_back(make, ids):
    """Exact as far as blocks are retained; further on request, or not at all."""
    for variant in ("vanilla", "PHD-CSWA-4-4-4"):  # a chunk is a block: hidden copies return too
        model = make(variant, HYBRIDS["sink"])
        expected = reference_logits(model, ids)
        with torch.no_grad():
            cache = model(ids[:, :31]).past_key_values
            cache.crop(-3)
            assert_close(model(ids[:, 28:40], past_key_values=cache).logits, expected[:, 28:40])
            before = cache.nbytes()
            with pytest.raises(ValueError, match="cannot go back to slot 39: .* before 40"):
                cache.crop(-1)
            assert (cache.get_seq_length(), cache.nbytes()) == (40, before)
            cache.activate_past_recording()
            model(ids[:, 40:50], past_key_values=cache)
            cache.crop(-9)
            assert_close(model(ids[:, 41:], past_key_values=cache).logits, expected[:, 41:])
            cache.reset()
            assert cache.nbytes() == 0
            assert_close(model(ids, past_key_values=cache).logits, expected)


def test_hidden_copies_that_cannot_return(make, ids):
    """They would see originals that are evicted; a new cache, the remedy, has them."""
    model = make("PHD-SWA-2-5-inf", HYBRIDS["sink"])
    expected = reference_logits(model, ids)
    with torch.no_grad():
        cache = model(ids[:, :31]).past_key_values
        cache.drop_hidden()
        with pytest.raises(ValueError, match="cannot go back to slot 19: .* Run the prompt again with a new"):
            model(ids[:, 31:32], past_key_values=cache)
        cache = model(ids[:, :31]).past_key_values
        assert_close(model(ids[:, 31:32], past_key_values=cache).logits, expected[:, 31:32])


def test_samples_reordered_repeated_selected(model, expected, ids):
    for change, taken in (
        (lambda cache: cache.reorder_cache(torch.tensor([1, 1])), [1, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
    ):
        with torch.no_grad():
            cache = model(ids[:, :30]).past_key_values
            change(cache)
            again = model(ids[taken, 30:45], past_key_values=cache).logits
        assert_close(again, expected[taken, 30:45])


def test_a_padded_sample_leaves(model, expected, ids):
    """Keys that only the other samples need are evicted in the next step."""
    padded = torch.stack([ids[0], ids[1].roll(6)])[:, :50]
    mask = torch.ones_like(padded)
    mask[1, :6] = 0
    for sample in (0, 1):
        one = slice(sample, sample + 1)
        with torch.no_grad():
            cache = model(padded[:, :30], attention_mask=mask[:, :30]).past_key_values
            cache.batch_select_indices(torch.tensor([sample]))
            logits = model(padded[one, 30:50], attention_mask=mask[one], past_key_values=cache).logits
        first = 30 - 6 * sample
        assert_close(logits, expected[one, first : first + 20])


GREEDY = {"max_new_tokens": 15, "do_sample": False}


def test_generate(model, ids):
    prompt = ids[:, :17]
    tokens = prompt
    with torch.no_grad():
        for _ in range(15):
            following = model(tokens, use_cache=False).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, following], dim=1)
    assert torch.equal(model.generate(prompt, **GREEDY), tokens)
    assert torch.equal(model.generate(prompt, prefill_chunk_size=5, **GREEDY), tokens)
    beams = {**GREEDY, "num_beams": 3}
    assert torch.equal(model.generate(prompt, **beams), model.generate(prompt, use_cache=False, **beams))


@pytest.mark.parametrize(
    ("variant", "hybrid"),
    [*itertools.product(KINDS, ["sink", "mixed"]), ("vanilla", "heads"), ("PHD-CSWA-3-5-12", "heads")],
)
def test_assisted_generation_rolls_back(make, ids, variant, hybrid):
    """Hidden copies too."""
    model = make(variant, HYBRIDS[hybrid])
    prompt = ids[:1, :6].repeat(1, 5)  # so that what was said before is guessed at
    expected = model.generate(prompt, **GREEDY)
    assistant = deepcopy(make(variant, None))  # generate keeps in it how much to guess
    assisted = model.generate(prompt, assistant_model=assistant, **GREEDY)
    assert torch.equal(assisted, expected)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=3, **GREEDY), expected)


@pytest.mark.parametrize("variant", KINDS)
@pytest.mark.parametrize("pads", [(0, 0), (0, 3)])
@pytest.mark.parametrize("asked", [1, 4, 0])
def test_recorded_steps_roll_back_exactly(make, ids, variant, pads, asked):
    """By any number of slots, whichever logits were requested: hidden copies that were computed only on the
    way to those are not exact, and are recomputed.
    """
    model = make(variant, HYBRIDS["mixed"])
    expected = [reference_logits(model, ids[i : i + 1, : 50 - pad])[0] for i, pad in enumerate(pads)]
    padded = torch.stack([ids[i].roll(pad) for i, pad in enumerate(pads)])
    mask = torch.stack([torch.arange(50) >= pad for pad in pads]).long()

    def step(first, end, cache):
        given = {"attention_mask": mask[:, :end], "past_key_values": cache}
        logits = model(padded[:, first:end], logits_to_keep=asked, **given).logits
        for row, wanted, pad in zip(logits, expected, pads, strict=True):
            count = min(len(row), end - pad)
            assert_close(row[-count:], wanted[: end - pad][-count:])

    with torch.no_grad():
        for back in (1, 2, 5, 6):
            cache = PHDCache(model.config)
            cache.activate_past_recording()
            step(0, 30, cache)
            cache.crop(-back)
            step(30 - back, 36, cache)
            cache.crop(-back)
            for column in range(36 - back, 42):
                step(column, column + 1, cache)


def test_static_caches_are_refused(make, ids):
    model = make("vanilla", HYBRIDS["sink"])
    with pytest.raises(ValueError, match="leave out max_cache_len"):
        PHDCache(model.config, max_cache_len=40)
    with pytest.raises(ValueError, match="leave out max_cache_len"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([SINK, None], "phd_variant: the attention pattern 1sink.4.1.2-1full has 2 layers, the model 3"),
        ([SINK, None, [4, 1, 2]], r"phd_patterns of layer 2 must be null or \[block, sink, local"),
        ([[4, 1, None, 2], None, None], "phd_patterns of layer 0"),
        ([None, [4, 1, 0, 2], None], "phd_patterns: the pattern's local must be at least 1"),
    ],
)
def test_configurations_that_cannot_be(layers, message):
    with pytest.raises(Exception, match=message):  # validation wraps it in a class of its own
        PHDLlamaConfig(**SHAPE, phd_patterns=layers)


@pytest.mark.parametrize("settings", [{"phd_copies": 2}, {"phd_variant": "longgen-sink"}])
def test_attention_dropout_is_refused(settings):
    """Hidden copies and sparse layers have none: as in training."""
    with pytest.raises(Exception, match="attention_dropout must be 0 with phd_variant"):
        PHDLlamaConfig(**SHAPE, attention_dropout=0.1, **settings)
    assert PHDLlamaConfig(**SHAPE, attention_dropout=0.1).attention_dropout == 0.1


def test_configuration_there_and_back(tmp_path):
    config = PHDLlamaConfig(**SHAPE, phd_patterns=HYBRIDS["mixed"])
    config.save_pretrained(tmp_path)
    again = PHDLlamaConfig.from_pretrained(tmp_path)
    assert again.phd_variant == "1full-1blocks.4.1.2.3-1blocks.1.2.3.2"
    assert [rule.keys for rule in again.rules] == [Full(), Blocks(4, 1, 2, 3), Blocks(1, 2, 3, 2)]
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["phd_config_version"] == 2
    del content["phd_variant"]
    content |= {"phd_config_version": 1, "phd_copies": 2}  # from before there were patterns
    (tmp_path / "config.json").write_text(json.dumps(content))
    again = PHDLlamaConfig.from_pretrained(tmp_path)
    assert (again.phd_variant, again.phd_config_version) == ("PHD-CSWA-2-16-32", 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phd_variant": "PHD-2", "phd_copies": 3}, "phd_variant PHD-2 says what phd_copies says"),
        ({"phd_variant": "PHD-0"}, "phd_variant: 'PHD-0' names no variant: copies must be at least 1"),
        ({"phd_variant": "naive-2+sink"}, "names no variant: naive repetition has full layers alone"),
        ({"phd_variant": "vanilla+table"}, "names no variant: a copy embedding is of hidden copies"),
        ({"phd_variant": "PHD-2+2sink"}, "the attention pattern 2sink has 2 layers, the model 3"),
    ],
)
def test_variants_that_cannot_be(settings, message):
    with pytest.raises(Exception, match=message):
        PHDLlamaConfig(**SHAPE, **settings)

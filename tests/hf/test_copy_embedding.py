"""Copy embeddings by vector and by table, however the model is called."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from phd.hf import PHDCache, PHDLlamaConfig, PHDLlamaForCausalLM
from tests.models import (
    SHAPE,
    assert_close,
    assert_close_in_half_precision,
    cache_bytes,
    left_padded,
    llama_logits,
    reference_logits,
    tell_copies_apart,
)

KINDS = ("PHD-2+vector", "PHD-SWA-2-5-inf+table", "PHD-CSWA-3-5-12+vector", "PHD-CSWA-3-5-12+table")
HYBRID = "1sink.4.1.2-1full-1block-sparse.4.3.1"
PROMPT = 17


@pytest.fixture(params=KINDS)
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture
def expected(model, ids):
    return llama_logits(model, ids)


def test_all_logits(model, expected, ids):
    """By rows, by blocks and by the dense reference, against Llama on one sequence of all copies."""
    assert_close(reference_logits(model, ids), expected)
    with torch.no_grad():
        assert_close(model(ids, use_cache=False).logits, expected)
        assert_close(model(ids[:, :30], use_cache=False).logits, expected[:, :30])
        assert_close(model(ids, logits_to_keep=3).logits, expected[:, -3:])


def test_they_matter(make_model, ids):
    names = (*KINDS, "PHD-2", "PHD-SWA-2-5-inf", "PHD-CSWA-3-5-12")
    logits = [reference_logits(make_model(name), ids)[:, -1] for name in names]
    for index, one in enumerate(logits):
        assert all((one - other).abs().max() > 0.05 for other in logits[index + 1 :])


@pytest.mark.parametrize("step", [1, 7, 33])
def test_decoding(model, expected, ids, step):
    """In chunks of any size; the cache is no larger than without."""
    cache, logits = PHDCache(model.config), []
    with torch.no_grad():
        for first in range(0, ids.shape[1], step):
            logits.append(model(ids[:, first : first + step], past_key_values=cache).logits)
            length = min(first + step, ids.shape[1])
            assert cache.nbytes() == cache_bytes(model.config, length, 2)
    assert_close(torch.cat(logits, dim=1), expected)


def test_prompts_then_steps(model, expected, ids):
    """The last logits only, so that some hidden copies run; over a chunk's end."""
    with torch.no_grad():
        for length in (1, 4, 11, 12, 13, 33):
            for cache in (PHDCache(model.config), PHDCache(model.config, max_cache_len=ids.shape[1])):
                output = model(ids[:, :length], past_key_values=cache, logits_to_keep=1)
                assert_close(output.logits[:, 0], expected[:, length - 1])
                for position in range(length, length + 6):
                    output = model(ids[:, position : position + 1], past_key_values=cache)
                    assert_close(output.logits[:, 0], expected[:, position])


def test_left_padding(model, expected, ids):
    padded, mask = left_padded(ids, 6)
    with torch.no_grad():
        logits = model(padded, attention_mask=mask, use_cache=False).logits
        assert_close(logits[0], expected[0])
        assert_close(logits[1, 6:], expected[1, :-6])
        for room in (None, ids.shape[1]):
            cache = PHDCache(model.config, max_cache_len=room)
            for begin, end in ((0, 20), (20, 21), (21, 22), (22, 27)):
                seen = {"attention_mask": mask[:, :end], "past_key_values": cache}
                logits = model(padded[:, begin:end], **seen).logits
                assert_close(logits[0], expected[0, begin:end])
                assert_close(logits[1, -1], expected[1, end - 7])


def test_rolled_back_hidden_tokens_come_back(model, expected, ids):
    """From the cached ids, which the tables need."""
    with torch.no_grad():
        for length in (9, 21, 39):
            for back in (1, 8):
                cache = model(ids[:, :length], logits_to_keep=1).past_key_values
                cache.crop(-back)
                output = model(ids[:, length - back : length + 1], past_key_values=cache)
                assert_close(output.logits, expected[:, length - back : length + 1])
            cache = model(ids[:, :length], logits_to_keep=1).past_key_values
            cache.drop_hidden()
            output = model(ids[:, length : length + 1], past_key_values=cache)
            assert_close(output.logits[:, 0], expected[:, length])


def test_generate(model, ids):
    """With a cache and without: greedy with padding, beams, and assisted decoding, which rolls back."""
    prompt, mask = left_padded(ids[:, :PROMPT], 5)
    settings = {"max_new_tokens": 12, "do_sample": False}
    inputs = settings | {"attention_mask": mask}
    without = model.generate(prompt, use_cache=False, **inputs)
    assert torch.equal(model.generate(prompt, **inputs), without)
    assert torch.equal(model.generate(prompt, cache_implementation="static", **inputs), without)
    inputs |= {"num_beams": 3}
    assert torch.equal(model.generate(prompt, **inputs), model.generate(prompt, use_cache=False, **inputs))
    plain = model.generate(ids[:1, :PROMPT], use_cache=False, **settings)
    assert torch.equal(model.generate(ids[:1, :PROMPT], prompt_lookup_num_tokens=3, **settings), plain)


def test_compiled_steps(make_model, ids):
    """One compiled graph serves every length."""
    for name in ("PHD-CSWA-3-5-12+vector", "PHD-CSWA-3-5-12+table"):
        model = make_model(name)
        expected = llama_logits(model, ids)
        torch._dynamo.reset()
        compiled = torch.compile(model.forward, backend="aot_eager", fullgraph=True, dynamic=False)
        cache = PHDCache(model.config, max_cache_len=64)
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
            model(ids[:, :PROMPT], past_key_values=cache, logits_to_keep=1)
            for position in range(PROMPT, PROMPT + 9):
                positions = torch.full((2, 1), position)
                step = ids[:, position : position + 1]
                logits = compiled(step, past_key_values=cache, position_ids=positions).logits
                assert_close(logits[:, 0], expected[:, position])


@pytest.mark.parametrize("embedding", ["vector", "table"])
@pytest.mark.parametrize("pattern", ["", f"+{HYBRID}"], ids=["full", "hybrid"])
def test_copies_that_enter_alike(make_model, ids, embedding, pattern):
    """Vectors of zero, or tables equal to the embedding, change no bit; so a new model begins."""
    plain = make_model(f"PHD-CSWA-3-5-12{pattern}")
    config = PHDLlamaConfig(**SHAPE, phd_variant=f"PHD-CSWA-3-5-12+{embedding}{pattern}")
    torch.manual_seed(1)  # as make_model has it
    with_own = PHDLlamaForCausalLM(config).eval()
    assert len([*with_own.model.copy_embedding.parameters()]) == 2
    with torch.no_grad():
        with_own.lm_head.weight[0] = 0
    assert all(torch.equal(with_own.state_dict()[name], x) for name, x in plain.state_dict().items())
    padded, mask = left_padded(ids, 6)
    found = []
    for model in (plain, with_own):
        with torch.no_grad():
            logits = [model(ids, use_cache=False).logits, model(padded, attention_mask=mask).logits]
            for room in (None,) if pattern else (None, 40):
                cache = PHDCache(model.config, max_cache_len=room)
                for begin, end in ((0, 20), (20, 21), (21, 28)):
                    logits.append(model(ids[:, begin:end], past_key_values=cache).logits)
        found.append(torch.cat(logits, dim=1))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["PHD-SWA-2-5-inf+vector", "PHD-CSWA-3-5-12+table"])
def test_hybrids(make_model, ids, name):
    """Layers that evict, against the dense rule; and a step that is rolled back."""
    model = make_model(f"{name}+{HYBRID}")
    expected = reference_logits(model, ids)
    padded, mask = left_padded(ids, 6)
    with torch.no_grad():
        for step in (1, 13):
            cache = PHDCache(model.config)
            for first in range(0, 50, step):
                output = model(ids[:, first : first + step], past_key_values=cache)
                assert_close(output.logits, expected[:, first : first + step])
                assert cache.nbytes() == cache_bytes(model.config, cache.get_seq_length(), 2)
        cache = model(ids[:, :20]).past_key_values
        cache.activate_past_recording()
        model(ids[:, 20:26], past_key_values=cache)
        cache.crop(-4)
        assert_close(model(ids[:, 22:30], past_key_values=cache).logits, expected[:, 22:30])
        logits = model(padded, attention_mask=mask).logits
        assert_close(logits[1, 6:], expected[1, :-6])


@pytest.mark.parametrize("padding", [0, 5])
def test_gradients(model, ids, padding):
    """By rows under padding, against the dense rule on the samples one by one; checkpointing changes none."""
    model = deepcopy(model).train()
    parameters = [*model.parameters()]
    padded, mask = left_padded(ids[:, :30], padding)
    labels = padded.masked_fill(mask.cumsum(1) < 2, -100)
    gradients = torch.autograd.grad(model(padded, attention_mask=mask, labels=labels).loss, parameters)
    model.activation_checkpointing_enable()
    again = torch.autograd.grad(model(padded, attention_mask=mask, labels=labels).loss, parameters)
    model.activation_checkpointing_disable()
    model.set_attn_implementation("eager")
    counts = torch.tensor([29, 29 - padding])
    parts = [model(x[None], labels=x[None]).loss for x in (padded[0], padded[1, padding:])]
    wanted = torch.autograd.grad((torch.stack(parts) * counts).sum() / counts.sum(), parameters)
    assert all(x.abs().max() > 0 for x in wanted)
    for one, other, dense in zip(gradients, again, wanted, strict=True):
        assert (one - dense).abs().max() <= 2e-5 * dense.abs().max()
        assert (one - other).abs().max() <= 2e-5 * dense.abs().max()


def test_embeddings_instead_of_ids(make_model, ids):
    """Vectors are added to them; tables have no row for them."""
    model = make_model("PHD-CSWA-3-5-12+vector")
    expected = llama_logits(model, ids)
    with torch.no_grad():
        output = model(inputs_embeds=model.model.embed_tokens(ids[:, :17]), logits_to_keep=1)
        assert_close(output.logits[:, 0], expected[:, 16])
        output = model(ids[:, 17:18], past_key_values=output.past_key_values)
        assert_close(output.logits[:, 0], expected[:, 17])
    for name in ("PHD-CSWA-3-5-12+table", "naive-2+table"):
        tables = make_model(name)
        embeddings = tables.model.embed_tokens(ids[:, :17])
        for call in (tables, tables.generate):
            with pytest.raises(ValueError, match="enter by tables of token ids: pass input_ids"):
                call(inputs_embeds=embeddings)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [80, 110])
def test_tables_follow_the_vocabulary(ids, tied, size):
    config = PHDLlamaConfig(**SHAPE, phd_variant="PHD-SWA-3-5-inf+table", tie_word_embeddings=tied)
    model = PHDLlamaForCausalLM(config).eval()
    tell_copies_apart(model)
    ids = ids % 80
    old = [table.weight.detach().clone() for table in model.model.copy_embedding.tables]
    with torch.no_grad():
        before = model(ids).logits
    model.resize_token_embeddings(size)
    for table, weight in zip(model.model.copy_embedding.tables, old, strict=True):
        assert table.weight.shape == (size, 32) and table.num_embeddings == size
        assert torch.equal(table.weight[:80], weight[:80])
    assert_close(model(ids).logits[..., :80], before[..., :80])
    model(torch.full((1, 3), size - 1)).logits.sum().backward()
    assert all(table.weight.grad is not None for table in model.model.copy_embedding.tables)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    model.model.resize_token_embeddings(96, pad_to_multiple_of=32)
    assert all(table.weight.shape == (96, 32) for table in model.model.copy_embedding.tables)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(model, ids, dtype, tmp_path):
    """By names of its own, in whole and in parts on other devices; in half precision too."""
    saved = deepcopy(model).to(dtype)
    saved.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    names = {name for name, _ in loaded.named_parameters() if "copy_embedding" in name}
    kind = model.config.variant.embedding
    spelling = "vectors.{}" if kind == "vector" else "tables.{}.weight"
    hidden = range(model.config.copies.hidden)
    assert names == {f"model.copy_embedding.{spelling.format(index)}" for index in hidden}
    assert loaded.dtype == dtype
    assert all(torch.equal(x, saved.state_dict()[name]) for name, x in loaded.state_dict().items())
    with torch.no_grad():
        expected = loaded(ids).logits
        if dtype == torch.float32:
            assert torch.equal(model(ids).logits, expected)
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{index}": "cpu" for index in range(3)} | {"model.copy_embedding": "disk"}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "rest"
    )
    assert {x.device.type for x in spread.model.copy_embedding.parameters()} == {"meta"}
    with torch.no_grad():
        assert torch.equal(spread(ids).logits, expected)


def test_half_precision(make_model, ids):
    """Prompt, steps and dense rule agree as far as rounding lets them."""
    for name in KINDS[2:]:
        model = deepcopy(make_model(name, initializer_range=0.1)).bfloat16()
        assert_close_in_half_precision(model, ids)


@pytest.mark.parametrize("embedding", ["vector", "table"])
def test_weights_of_a_model_without(make_model, ids, embedding, tmp_path):
    """Loaded with a copy embedding, all copies enter alike: nothing is drawn at random."""
    plain = make_model("PHD-SWA-3-3-inf")
    plain.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, phd_variant=f"PHD-SWA-3-3-inf+{embedding}").eval()
    assert len([*loaded.model.copy_embedding.parameters()]) == 2
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, plain(ids).logits)


def test_llama_alone_has_no_weights_more(make_model):
    llama = LlamaForCausalLM(LlamaConfig(**SHAPE))
    for name in ("vanilla", "PHD-CSWA-3-5-12", "naive-2", HYBRID):
        assert make_model(name).state_dict().keys() == llama.state_dict().keys()

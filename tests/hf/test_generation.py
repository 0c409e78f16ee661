"""``model.generate`` in the ways that people call it, against picking from the full forward's logits."""

from copy import deepcopy

import pytest
import torch
import transformers

from phd.hf import PHDCache
from tests.models import VARIANTS

SOME = ["PHD-2", "PHD-SWA-3-3-inf", "PHD-CSWA-3-5-12"]
PROMPT = 17


@pytest.fixture(params=SOME)
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture(autouse=True)
def no_warnings():
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(before)


def greedy(model, ids: torch.Tensor, count: int = 20) -> torch.Tensor:
    """No cache at all."""
    with torch.no_grad():
        for _ in range(count):
            following = model(ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, following], dim=1)
    return ids


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy(variant, make_model, ids):
    model, prompt = make_model(variant), ids[:, :PROMPT]
    assert torch.equal(model.generate(prompt, max_new_tokens=20, do_sample=False), greedy(model, prompt))


def test_static_cache(model, ids):
    prompt = ids[:, :PROMPT]
    settings = {"max_new_tokens": 20, "do_sample": False, "cache_implementation": "static"}
    assert torch.equal(model.generate(prompt, **settings), greedy(model, prompt))


def test_quantized_cache_is_refused(model, ids):
    with pytest.raises((ValueError, ImportError), match="quantized|quanto"):
        model.generate(ids, max_new_tokens=2, cache_implementation="quantized")


@pytest.mark.parametrize("implementation", [None, "static"])
def test_prompts_of_unequal_lengths(model, ids, implementation):
    prompt = ids[:, :PROMPT].clone()
    prompt[1, :5] = 0
    mask = torch.ones_like(prompt)
    mask[1, :5] = 0
    settings = {"max_new_tokens": 20, "do_sample": False, "cache_implementation": implementation}
    output = model.generate(prompt, attention_mask=mask, **settings)
    assert torch.equal(output[0], greedy(model, prompt[:1])[0])
    assert torch.equal(output[1, 5:], greedy(model, prompt[1:, 5:])[0])


def test_beams(model, ids):
    settings = {"max_new_tokens": 15, "do_sample": False, "num_beams": 3}
    with_cache = model.generate(ids[:, :PROMPT], **settings)
    assert torch.equal(with_cache, model.generate(ids[:, :PROMPT], use_cache=False, **settings))


def test_sampling_several_of_a_prompt(model, ids):
    settings = {"max_new_tokens": 15, "do_sample": True, "num_return_sequences": 3, "top_k": 20}
    transformers.set_seed(3)
    with_cache = model.generate(ids[:, :PROMPT], **settings)
    transformers.set_seed(3)
    assert torch.equal(with_cache, model.generate(ids[:, :PROMPT], use_cache=False, **settings))


def test_turns_share_a_cache(model, ids):
    cache = PHDCache(model.config)
    first = model.generate(ids[:, :PROMPT], max_new_tokens=5, do_sample=False, past_key_values=cache)
    prompt = torch.cat([first, ids[:, 40:46]], dim=1)
    second = model.generate(prompt, max_new_tokens=9, do_sample=False, past_key_values=cache)
    assert torch.equal(second, greedy(model, prompt, 9))


def test_assisted(model, make_model, ids):
    """Both roll their caches back; K = 2 drafts for K = 3 with the same weights, so some drafts are
    accepted.
    """
    assistant = deepcopy(make_model("PHD-CSWA-2-16-32"))  # generate keeps in it how much to guess
    prompt, settings = ids[:1, :PROMPT], {"max_new_tokens": 20, "do_sample": False}
    expected = greedy(model, prompt)
    assert torch.equal(model.generate(prompt, assistant_model=assistant, **settings), expected)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=3, **settings), expected)


@pytest.mark.parametrize(
    ("variant", "backend"),
    [("PHD-CSWA-3-5-12", "aot_eager"), *(pytest.param(x, "inductor", marks=pytest.mark.slow) for x in SOME)],
)
def test_compiled_steps(variant, backend, make_model, ids):
    """One graph serves every length: no graph break, no recompilation."""
    model = make_model(variant)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, backend=backend, fullgraph=True, dynamic=False)
    prompt = ids[:, :PROMPT]
    expected = greedy(model, prompt)
    cache = PHDCache(model.config, max_cache_len=64)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        token = model(prompt, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        tokens = [prompt, token]
        for position in range(PROMPT, PROMPT + 19):
            positions = torch.full((2, 1), position)
            output = compiled(token, past_key_values=cache, position_ids=positions)
            token = output.logits.argmax(-1)
            tokens.append(token)
    assert torch.equal(torch.cat(tokens, dim=1), expected)

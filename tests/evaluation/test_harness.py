"""Log-likelihoods from cached contexts are those of the whole sequences."""

import copy
import random

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from phd.evaluation.harness import CachedLM
from tests.models import VOCABULARY


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models

    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t1")),
        eos_token="t0",
        pad_token="t0",
    )


def expected(model, context, continuation):
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation[:-1]]), use_cache=False).logits[0]
    scores = logits[len(context) - 1 :].log_softmax(-1)
    chosen = scores.gather(-1, torch.tensor(continuation)[:, None])
    return float(chosen.sum()), scores.argmax(-1).tolist() == continuation


@pytest.mark.parametrize(
    "variant", ["vanilla", "PHD-2", "PHD-SWA-3-3-inf", "PHD-CSWA-3-5-12+vector", "naive-2-consecutive+table"]
)
def test_same_as_whole_sequences(variant, make_model, tokenizer, monkeypatch):
    """Contexts of many lengths in one batch, choices of unequal lengths, greedy ones among them."""
    from transformers import LlamaForCausalLM

    model = make_model(variant)
    if variant == "vanilla":  # as it is exported
        llama = LlamaForCausalLM(model.config).eval()
        llama.load_state_dict(model.state_dict())
        model = llama
    draw = random.Random(0)
    requests, questions = [], []
    for length in (5, 17, 12, 29, 30):
        context = [draw.randrange(1, VOCABULARY) for _ in range(length)]
        with torch.no_grad():
            likeliest = int(model(torch.tensor([context])).logits[0, -1].argmax())
        for continuation in ([3, 7, 9, 11], [5], [likeliest], [draw.randrange(1, VOCABULARY)] * 3):
            questions.append((context, continuation))
    questions.append(([4], [8, 9, 10, 11, 12]))  # a short context: the harness's own way
    requests = [(("", ""), context, continuation) for context, continuation in questions]
    lm = CachedLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=64)
    contexts = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: contexts.append(k) or forward(*a, **k))
    answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(questions, answers, strict=True):
        wanted, is_greedy = expected(model, context, continuation)
        assert score == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert greedy == is_greedy
    assert any(greedy for _, greedy in answers)
    assert sum(k.get("logits_to_keep") == 1 for k in contexts) == 3  # each context is read once


def test_half_precision_is_summed_in_full(make_model, tokenizer):
    """A long continuation goes the harness's own way; in bf16 its sum would be off by one and more."""
    model = make_model("PHD-2", name="bf16", initializer_range=0.02).bfloat16()
    draw = random.Random(0)
    continuation = [draw.randrange(1, VOCABULARY) for _ in range(200)]
    with torch.no_grad():
        logits = model(torch.tensor([[4, *continuation[:-1]]]), use_cache=False).logits[0]
    scores = logits.double().log_softmax(-1).gather(-1, torch.tensor(continuation)[:, None])
    lm = CachedLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=256)
    ((score, _),) = lm._loglikelihood_tokens([(("", ""), [4], continuation)], disable_tqdm=True)
    assert score == pytest.approx(float(scores.sum()), abs=1e-2)


def test_what_stands_before_a_text(make_model, tokenizer):
    """The end of another, as in training, unless the tokenizer itself begins texts with BOS."""
    from tokenizers.processors import TemplateProcessing

    arguments = {"pretrained": make_model("PHD-2"), "batch_size": 1, "max_length": 64}
    assert CachedLM(tokenizer=tokenizer, **arguments).prefix_token_id == tokenizer.eos_token_id
    other = copy.deepcopy(tokenizer)
    other.bos_token = "t2"
    assert CachedLM(tokenizer=other, **arguments).prefix_token_id == tokenizer.eos_token_id
    other.backend_tokenizer.post_processor = TemplateProcessing(single="t2 $A", special_tokens=[("t2", 2)])
    assert CachedLM(tokenizer=other, **arguments).prefix_token_id == 2


def test_no_batch_is_larger_than_asked(make_model, tokenizer, monkeypatch):
    """Many choices of one context are several batches."""
    model = make_model("PHD-CSWA-3-5-12")
    context = [draw % 90 + 1 for draw in range(0, 340, 17)]
    questions = [(context, [choice, choice + 1]) for choice in range(1, 8)]
    lm = CachedLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=64)
    sizes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **k: sizes.append(len(ids)) or forward(ids, **k))
    answers = lm._loglikelihood_tokens([(("", ""), *question) for question in questions], disable_tqdm=True)
    assert sizes == [1, 3, 1, 3, 1, 1]
    for question, (score, _) in zip(questions, answers, strict=True):
        assert score == pytest.approx(expected(model, *question)[0], rel=1e-4)


def test_rolling_perplexity(make_model, tokenizer):
    from lm_eval.api.instance import Instance

    model = make_model("PHD-CSWA-3-5-12")
    lm = CachedLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=64)
    tokens = [5, 9, 33, 2, 8, 71]
    lm.tok_encode = lambda *args, **kwargs: tokens
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=("x",), idx=0)
    (score,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
    assert score == pytest.approx(expected(model, [0], tokens)[0], rel=1e-4)


def test_a_prompt_is_never_cut(make_model, tokenizer, monkeypatch):
    """One that just fits is read whole; one token more is refused, before anything is computed."""
    from lm_eval.api.instance import Instance

    model = make_model("PHD-CSWA-3-5-12")
    lm = CachedLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=64)
    lm.tok_encode = lambda text, **kwargs: [int(word[1:]) for word in text.split()]

    def request(tokens, *rest, kind="loglikelihood"):
        arguments = (" ".join(["t5"] * tokens), *rest)
        return Instance(kind, {}, arguments, idx=0, metadata=("its_task", 0, 1))

    whole, answer = [5] * 63, [7, 9]  # of which the model reads all but the last
    ((score, _),) = lm.loglikelihood([request(63, " t7 t9")], disable_tqdm=True)
    assert score == pytest.approx(expected(model, whole, answer)[0], rel=1e-4)
    (rolling,) = lm.loglikelihood_rolling([request(150, kind="loglikelihood_rolling")], disable_tqdm=True)
    assert rolling < 0  # a text has windows
    monkeypatch.setattr(model, "forward", None)
    refused = r"its_task: a prompt has 66 tokens with its answer, and the model reads at most 64: take fewer"
    with pytest.raises(ValueError, match=refused):
        lm.loglikelihood([request(20, " t7"), request(64, " t7 t9")], disable_tqdm=True)
    refused = "its_task: a prompt has 60 tokens, with 5 more to generate, and the model reads at most 64"
    with pytest.raises(ValueError, match=refused):
        settings = {"max_gen_toks": 5, "until": [], "do_sample": False}
        lm.generate_until([request(60, settings, kind="generate_until")], disable_tqdm=True)

"""Log-likelihoods from cached contexts are those of the whole sequences."""

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


@pytest.mark.parametrize("variant", ["vanilla", "PHD-2", "PHD-SWA-3-3-inf", "PHD-CSWA-3-5-12"])
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


def test_rolling_perplexity(make_model, tokenizer):
    from lm_eval.api.instance import Instance

    model = make_model("PHD-CSWA-3-5-12")
    lm = CachedLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=64)
    tokens = [5, 9, 33, 2, 8, 71]
    lm.tok_encode = lambda *args, **kwargs: tokens
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=("x",), idx=0)
    (score,) = lm.loglikelihood_rolling([request], disable_tqdm=True)
    assert score == pytest.approx(expected(model, [0], tokens)[0], rel=1e-4)

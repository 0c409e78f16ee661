"""A model's weights under layer patterns that it was not trained with."""

import random
from argparse import ArgumentParser

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from phd.attention.pattern import Pattern
from phd.config import PHDConfig
from phd.evaluation.harness import CachedLM
from phd.evaluation.patterns import NUMBERS, add_arguments, asked_patterns, with_patterns
from tests.evaluation.test_harness import expected, tokenizer  # noqa: F401 (a fixture)
from tests.models import SHAPE, VOCABULARY


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def asked(*arguments, layers=3):
    parser = ArgumentParser()
    add_arguments(parser)
    return asked_patterns(parser.parse_args([str(x) for x in arguments]), layers)


def test_asked():
    assert asked("--attention-pattern", "full") == (None, None, None)
    assert asked("--attention-pattern", "longgen-sink") == (Pattern(), None, Pattern())
    strided = PHDConfig(attention_pattern="block-sparse").patterns(3)
    assert asked("--attention-pattern", "block-sparse") == strided
    window = asked(
        "--attention-pattern", "sink", "--pattern-sink", 0, "--pattern-local", 4, "--pattern-block", 8
    )
    assert window == (Pattern(8, 0, 4),) * 3
    with pytest.raises(ValueError, match="--attention-pattern: 'swa' is no attention pattern"):
        asked("--attention-pattern", "swa")
    with pytest.raises(ValueError, match="--attention-pattern: .*2 layers, the model 3"):
        asked("--attention-pattern", "2*sink")
    with pytest.raises(ValueError, match="local must be at least 1, got 0"):
        asked("--attention-pattern", "sink", "--pattern-local", 0)


def test_defaults_are_those_of_training():
    fields = ("block", "sink_blocks", "local_blocks", "stride")
    assert [getattr(PHDConfig, f"attention_pattern_{name}") for name in fields] == [
        default for default, _ in NUMBERS.values()
    ]


def test_same_weights_other_layers(llama):
    ids = torch.randint(1, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = llama(ids).logits
        same = with_patterns(llama, (None, None, None))
        torch.testing.assert_close(same(ids).logits, full, rtol=1e-4, atol=3e-5)
        window = with_patterns(llama, (Pattern(4, 0, 2), None, Pattern(4, 0, 2)))
        logits = window(ids).logits
    # the first two blocks see everything, the third begins to miss the first
    torch.testing.assert_close(logits[:, :8], full[:, :8], rtol=1e-4, atol=3e-5)
    assert (logits[:, 8] - full[:, 8]).abs().max() > 1e-2
    pointers = [{name: x.data_ptr() for name, x in model.state_dict().items()} for model in (window, llama)]
    assert pointers[0] == pointers[1]  # not copied


def test_copies_stay_and_an_own_pattern_is_replaced(make_model):
    ids = torch.randint(1, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))
    model = make_model("PHD-CSWA-3-5-12")
    sparse = with_patterns(model, (Pattern(4, 1, 2), None, None))
    assert sparse.config.phd_copies == 3
    with torch.no_grad():
        full = model(ids).logits
        assert (sparse(ids).logits - full).abs().max() > 1e-2
        again = with_patterns(sparse, (None, None, None))
        torch.testing.assert_close(again(ids).logits, full, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("text", ["longgen-sink", "sink,full,block-sparse"])
def test_scores_are_those_of_whole_sequences(llama, text, tokenizer):  # noqa: F811
    numbers = ("--pattern-block", 4, "--pattern-local", 2, "--pattern-stride", 3)
    model = with_patterns(llama, asked("--attention-pattern", text, *numbers))
    draw = random.Random(0)
    requests = []
    for length in (37, 36, 35, 24, 23, 9):
        context = [draw.randrange(1, VOCABULARY) for _ in range(length)]
        with torch.no_grad():
            likeliest = int(model(torch.tensor([context])).logits[0, -1].argmax())
        requests.append((("", ""), context, [likeliest, 5, 7, 11, 13]))
        requests.append((("", ""), context, [likeliest]))
    lm = CachedLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=64)
    answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    for (_, context, continuation), (score, greedy) in zip(requests, answers, strict=True):
        wanted, is_greedy = expected(model, context, continuation)
        assert score == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert greedy == is_greedy

"""A model's weights under layer patterns that it was not trained with."""

import random
from argparse import ArgumentParser

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from phd.evaluation.harness import CachedLM
from phd.evaluation.patterns import add_arguments, asked_layers, with_layers
from phd.rules.keys import Blocks, Full
from tests.evaluation.test_harness import expected, tokenizer  # noqa: F401 (a fixture)
from tests.models import SHAPE, VOCABULARY


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


FULL = Full()


def test_asked():
    assert asked_layers("full", 3) == (FULL, FULL, FULL)
    assert asked_layers("longgen-sink", 3) == (Blocks(), FULL, Blocks())
    assert asked_layers("sink.8.0.4", 3) == (Blocks(8, 0, 4),) * 3
    with pytest.raises(ValueError, match="--attention-pattern: 'swa' is no attention pattern"):
        asked_layers("swa", 3)
    with pytest.raises(ValueError, match="--attention-pattern: .*2 layers, the model 3"):
        asked_layers("2*sink", 3)
    with pytest.raises(ValueError, match="--attention-pattern: .*local must be at least 1, got 0"):
        asked_layers("sink.64.1.0", 3)


@pytest.mark.parametrize(
    ("flags", "spelling"),
    [
        ("--attention-pattern sink --pattern-local 4 --pattern-block 8", "sink.8.1.4"),
        ("--pattern-stride 8 --attention-pattern longgen-block", "longgen-block.64.8.1"),
    ],
)
def test_older_flags_stop_with_the_new_spelling(flags, spelling, monkeypatch, capsys):
    parser = ArgumentParser()
    add_arguments(parser)
    monkeypatch.setattr("sys.argv", ["phd", "eval", "model", *flags.split()])
    with pytest.raises(SystemExit):
        parser.parse_args(flags.split())
    said = f"is part of --attention-pattern now: write --attention-pattern {spelling}"
    assert said in capsys.readouterr().err
    assert parser.parse_args(["--attention-pattern", spelling]).attention_pattern == spelling


def test_same_weights_other_layers(llama):
    ids = torch.randint(1, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = llama(ids).logits
        same = with_layers(llama, (FULL, FULL, FULL))
        torch.testing.assert_close(same(ids).logits, full, rtol=1e-4, atol=3e-5)
        window = with_layers(llama, (Blocks(4, 0, 2), FULL, Blocks(4, 0, 2)))
        logits = window(ids).logits
    # the first two blocks see everything, the third begins to miss the first
    torch.testing.assert_close(logits[:, :8], full[:, :8], rtol=1e-4, atol=3e-5)
    assert (logits[:, 8] - full[:, 8]).abs().max() > 1e-2
    pointers = [{name: x.data_ptr() for name, x in model.state_dict().items()} for model in (window, llama)]
    assert pointers[0] == pointers[1]  # not copied


def test_copies_stay_and_an_own_pattern_is_replaced(make_model):
    ids = torch.randint(1, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))
    model = make_model("PHD-CSWA-3-5-12+vector")
    sparse = with_layers(model, (Blocks(4, 1, 2), FULL, FULL))
    assert sparse.config.phd_variant == "PHD-CSWA-3-5-12+vector+1sink.4.1.2-2full"
    with torch.no_grad():
        full = model(ids).logits
        assert (sparse(ids).logits - full).abs().max() > 1e-2
        again = with_layers(sparse, (FULL, FULL, FULL))
        torch.testing.assert_close(again(ids).logits, full, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("text", ["longgen-sink.4.1.2", "1sink.4.1.2-1full-1block-sparse.4.3.1"])
def test_scores_are_those_of_whole_sequences(llama, text, tokenizer):  # noqa: F811
    model = with_layers(llama, asked_layers(text, 3))
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

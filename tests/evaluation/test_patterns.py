"""Scores of a model under layer patterns that it was not trained with, and the flags of before."""

import random
from argparse import ArgumentParser

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from phd.evaluation.harness import CachedLM
from phd.evaluation.patterns import add_arguments
from phd.pattern_flags import with_layers
from phd.rules.pattern import LayerPattern
from tests.evaluation.test_harness import expected, tokenizer  # noqa: F401 (a fixture)
from tests.models import SHAPE, VOCABULARY


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


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


@pytest.mark.parametrize("text", ["longgen-sink.4.1.2", "1heads.1full.1sink.4.1.2-1full-1block-sparse.4.3.1"])
def test_scores_are_those_of_whole_sequences(llama, text, tokenizer):  # noqa: F811
    model = with_layers(llama, LayerPattern.parse(text).layers(3))
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

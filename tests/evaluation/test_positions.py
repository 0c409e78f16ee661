"""`phd eval --loss-by-position`: each number again from the model itself."""

import json
from statistics import fmean, stdev

import pytest
import torch

from phd.evaluation.pieces import read_pieces
from phd.hf.rope import scale_model
from phd.loading import load_model
from phd.pattern_flags import with_layers
from phd.rules.pattern import LayerPattern
from tests.evaluation.test_layers import call
from tests.models import ENGLISH


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(json.dumps({"text": ENGLISH * size}) + "\n" for size in (9, 40, 57)))
    return file


def losses_of_tokens(model, piece):
    with torch.no_grad():
        logits = model(torch.tensor([piece])).logits[0].log_softmax(-1)
    return [-float(logits[place, token]) for place, token in enumerate(piece[1:])]


@pytest.mark.parametrize(
    ("flags", "lengths", "scales"),
    [
        ((), (12, 30, 31), (1, 1, 1)),
        (("--attention-pattern", "sink.4.1.2", "--rope-scale", 2.5), (2, 40), (2.5, 2.5)),
        (("--rope-scale", "auto"), (200, 300, 600), (1, 2, 3)),  # it was trained with 256
    ],
)
def test_each_number(tiny_folder, corpus, tmp_path, capsys, flags, lengths, scales):
    output = tmp_path / "losses.json"
    asked = ("--lengths", ",".join(map(str, lengths)), "--limit", 3, "--batch-size", 2, "--seed", 5)
    arguments = ("--loss-by-position", "--corpus", corpus, *asked, *flags)
    assert call(tiny_folder, *arguments, "--output", output) == 0
    report = json.loads(output.read_text())
    assert report["lengths"] == [*lengths] and report["pieces"] == 3
    _, tokenizer = load_model(tiny_folder)
    pieces = read_pieces(corpus, tokenizer, lengths[-1], 3, seed=5)
    for reading, length, scale in zip(report["readings"], lengths, scales, strict=True):
        model, _ = load_model(tiny_folder)
        if "--attention-pattern" in flags:
            model = with_layers(model, LayerPattern.parse("sink.4.1.2").layers(3))
        scale_model(model, scale)
        assert (reading["length"], reading["rope_scale"]) == (length, scale)
        of_tokens = [losses_of_tokens(model, piece[-length:]) for piece in pieces]
        edges = [1, *lengths[: lengths.index(length) + 1]]
        bins = [(1, length), *zip(edges, edges[1:], strict=False)]
        for found, (first, last) in zip([reading["loss"], *reading["by_position"]], bins, strict=True):
            means = [fmean(losses[first - 1 : last - 1]) for losses in of_tokens]
            assert found["mean"] == pytest.approx(fmean(means), rel=1e-5)
            assert found["standard_error"] == pytest.approx(stdev(means) / 3**0.5, rel=1e-4, abs=1e-7)
    printed = capsys.readouterr().out
    assert f"{report['readings'][-1]['by_position'][0]['mean']:.4f}" in printed
    assert ("rope scale" in printed) == (scales[-1] != 1)


def test_refused(tiny_folder, corpus):
    lengths = ("--lengths", "64,128")
    for arguments, message in (
        (lengths, "--loss-by-position measures the loss of a text: give --corpus"),
        (("--corpus", corpus), "--loss-by-position reads the text at several lengths: give --lengths"),
        (("--corpus", corpus, *lengths, "--tasks", "piqa"), "--tasks has no meaning with --loss-by-position"),
        (("--corpus", corpus, *lengths, "--rank-layers", "sink"), "--rank-layers has no meaning"),
        (("--corpus", corpus, "--lengths", "1,64"), "--lengths must be at least 2"),
        (("--corpus", corpus, "--lengths", 257), "--lengths 257: the model reads at most 256"),
        (("--corpus", corpus, *lengths, "--limit", 1), "--limit must be at least 2 for a standard error"),
        (
            ("--corpus", corpus, *lengths, "--limit", 999),
            "held_out.jsonl has .* pieces of 128 tokens, and 999",
        ),
        (("--corpus", corpus, *lengths, "--batch-size", "auto"), "--batch-size must be a number"),
        (("--corpus", corpus, "--rope-scale", "auto"), "--rope-scale auto goes with --lengths"),
    ):
        with pytest.raises(ValueError, match=message):
            call(tiny_folder, "--loss-by-position", *arguments)

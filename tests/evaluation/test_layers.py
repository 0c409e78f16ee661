"""Which layers need full attention: the ranking, its statistics, and `phd eval --rank-layers`."""

import json
import random
from argparse import ArgumentParser
from statistics import fmean, stdev

import pytest
import torch

from phd.evaluation import cli, rank_layers
from phd.evaluation.layers import rank, sparse_keys
from phd.evaluation.pieces import draw_pieces
from phd.pattern_flags import with_layers
from phd.rules.keys import Blocks, Full
from phd.rules.pattern import LayerPattern
from tests.models import ENGLISH

FULL, SPARSE = Full(), Blocks(4, 1, 2)


def call(*arguments) -> int:
    parser = ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args([str(x) for x in arguments]))


def test_the_layers_that_cost_most_stay_full():
    """Losses are known: a piece's own, and a cost for each sparse layer that varies from piece to piece."""
    costs, pieces = [0.5, 0.01, 0.02, 0.03, 0.4, 0.0, 0.3], list(range(12))
    draw = random.Random(0)
    noise = {(piece, layer): draw.gauss(1, 0.2) for piece in pieces for layer in range(7)}
    asked = []

    def losses(pattern, pieces):
        asked.append((tuple(pattern), tuple(pieces)))
        return [
            3 + piece + sum(costs[i] * noise[piece, i] for i, keys in enumerate(pattern) if keys != FULL)
            for piece in pieces
        ]

    ranking = rank(losses, 7, SPARSE, pieces)
    assert ranking.pattern == "1full-3sink.4.1.2-1full-1sink.4.1.2-1full"
    assert LayerPattern.parse(ranking.pattern).layers(7) == ranking.chosen
    # only the first six pieces had a part in the choice, only the others in the comparison
    assert {pieces for _, pieces in asked[:8]} == {tuple(range(6))}
    assert {pieces for _, pieces in asked[8:]} == {tuple(range(6, 12))} and len(asked) == 12
    for layer, change in enumerate(ranking.layers):
        values = [costs[layer] * noise[piece, layer] for piece in range(6)]
        assert change.mean == pytest.approx(fmean(values))
        assert change.standard_error == pytest.approx(stdev(values) / 6**0.5, abs=1e-12)
    sparse = {"chosen": [1, 2, 3, 5], "middle third": [0, 1, 5, 6], "all sparse": range(7)}
    for name, change in ranking.held_out.items():
        values = [sum(costs[i] * noise[piece, i] for i in sparse[name]) for piece in range(6, 12)]
        assert change.mean == pytest.approx(fmean(values))
    difference = ranking.chosen_less_third
    assert difference.mean == pytest.approx(
        ranking.held_out["chosen"].mean - ranking.held_out["middle third"].mean
    )
    assert difference.n == 6 and difference.high < 0
    with pytest.raises(ValueError, match="a loss is not finite"):
        rank(lambda pattern, pieces: [float("nan")] * len(pieces), 7, SPARSE, pieces)


def test_rules():
    assert sparse_keys("sink.4.1.2", 13) == SPARSE
    with pytest.raises(ValueError, match=r"--rank-layers sink.4.1.2 hides nothing in 12 tokens: write"):
        sparse_keys("sink.4.1.2", 12)
    with pytest.raises(ValueError, match="--rank-layers full hides nothing"):
        sparse_keys("full", 100)
    with pytest.raises(ValueError, match="--rank-layers: 'window' is no rule of keys"):
        sparse_keys("window", 100)
    with pytest.raises(ValueError, match="--rank-layers groups.4.2: layers are full in inference"):
        sparse_keys("groups.4.2", 100)


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(json.dumps({"text": ENGLISH * size}) + "\n" for size in (9, 2, 7)))
    return file


def test_end_to_end(tiny_folder, corpus, tmp_path, capsys):
    """Of a model with copies, from its folder; each number again from the model itself."""
    from phd.loading import load_model

    output = tmp_path / "layers.json"
    flags = ("--rank-layers", "sink.4.1.2", "--lengths", 48, "--limit", 3, "--batch-size", 2, "--seed", 5)
    assert call(tiny_folder, "--corpus", corpus, *flags, "--output", output) == 0
    report = json.loads(output.read_text())
    model, tokenizer = load_model(tiny_folder)
    pieces = draw_pieces(corpus, lambda text: tokenizer.encode(text), tokenizer.eos_token_id, 48, 6, seed=5)

    def losses(pattern, pieces):
        model = with_layers(load_model(tiny_folder)[0], pattern)
        with torch.no_grad():
            return [float(model(ids, labels=ids).loss) for ids in map(torch.tensor, [[x] for x in pieces])]

    wanted = rank(losses, 3, SPARSE, pieces)
    assert (report["rule"], report["length"], report["pieces"]) == ("sink.4.1.2", 48, 3)
    assert report["pattern"] == wanted.pattern
    assert report["loss"] == pytest.approx(wanted.loss, rel=1e-5)
    for found, change in zip(report["layers"], wanted.layers, strict=True):
        assert found["mean"] == pytest.approx(change.mean, abs=1e-4)
    for name, change in wanted.held_out.items():
        assert report["held_out"][name]["mean"] == pytest.approx(change.mean, abs=1e-4)
        assert change.mean != 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"--attention-pattern {wanted.pattern}"
    third = wanted.pattern == "1sink.4.1.2-1full-1sink.4.1.2"
    assert ("the chosen layers are the middle third" in printed) == third
    assert ("chosen less middle third: " in printed) != third


def test_refused(tiny_folder, corpus, make_model, monkeypatch):
    flags = ("--rank-layers", "sink.4.1.2")
    for arguments, message in (
        ((), "--rank-layers measures the loss of a text: give --corpus"),
        (("--corpus", corpus, "--tasks", "piqa"), "--tasks has no meaning with --rank-layers"),
        (("--corpus", corpus, "--attention-pattern", "sink"), "--attention-pattern has no meaning"),
        (("--corpus", corpus, "--lengths", "64,128"), "--lengths: --rank-layers takes one length"),
        (("--corpus", corpus, "--lengths", 512), "--lengths 512: the model reads 2 to 256 tokens"),
        (("--corpus", corpus, "--limit", 1), "--limit must be at least 2 for a standard error, got 1"),
        (("--corpus", corpus, "--batch-size", "auto"), "--batch-size must be a number"),
    ):
        with pytest.raises(ValueError, match=message):
            call(tiny_folder, *flags, *arguments)
    for variant, settings, message in (
        ("1sink.4.1.2-2full", {}, "--rank-layers is for models whose layers are full, .* trained with 1sink"),
        ("naive-2", {}, "--rank-layers: naive-2 repeats naively"),
        ("vanilla", {"num_hidden_layers": 2}, "needs a model of at least 3 layers, .* has 2"),
    ):
        model = make_model(variant, name="ranked")
        with monkeypatch.context() as patch:
            patch.setattr(rank_layers, "load_model", lambda *_, model=model: (model, None))
            for name, value in settings.items():
                patch.setattr(model.config, name, value)
            with pytest.raises(ValueError, match=message):
                call("model", *flags, "--corpus", corpus)

"""Latency against K: it runs, and its arithmetic."""

import json

import pytest
import torch

from benchmarks import latency
from benchmarks.latency import CHUNK, WINDOW, Line
from phd.rules.rule import AttentionRule


def test_runs_and_says_what_it_measured(tmp_path, capsys):
    file = tmp_path / "latency.json"
    sizes = ["--prompts", "64", "--prefill-copies", "2", "--decode-copies", "3", "--context", "40"]
    latency.main([*sizes, "--rounds", "1", "--steps", "1", "--device", "cpu", "--output", str(file)])
    report = json.loads(file.read_text())
    names = [row["variant"] for row in report["prefill"]]
    copies = ["naive-2", f"PHD-SWA-2-{WINDOW}-inf", f"PHD-CSWA-2-{WINDOW}-{CHUNK}"]
    assert names == ["vanilla", "longgen-sink", "longgen-block", *copies]
    # 64 positions are one block, which every pattern keeps
    assert [row["floor"] for row in report["prefill"]] == [1, 1, 1, 2, 1 + 61 / 64, 1.5]
    sizes = {row["style"]: row["kv_bytes"] for row in report["decode"]}
    assert sizes["naive"] == 3 * sizes["vanilla"]
    entry = sizes["vanilla"] / 40
    assert sizes["PHD-SWA"] == sizes["vanilla"] + entry * (WINDOW - 1) * 2
    assert sizes["PHD-CSWA"] == sizes["vanilla"] + entry * 8 * 2
    assert all(row["floor_seconds"] > 0 for row in report["decode"])
    assert file.with_suffix(".png").stat().st_size > 10_000
    assert "times its floor" in capsys.readouterr().out
    assert report["cudnn_attention"] is False and torch.backends.cuda.cudnn_sdp_enabled()


def test_styles_and_long_naive_prompts_are_left_out():
    args = latency.parse(["--styles", "naive", "PHD-CSWA", "--naive-tokens", "100"])
    names = [str(line.variant) for line in latency.chosen(args, [2, 4], 50)]
    assert names == ["vanilla", "naive-2", "PHD-CSWA-2-16-32", "PHD-CSWA-4-16-32"]


def test_angles_stay_in_fp32():
    model = latency.make_model("small", latency.VANILLA, torch.device("cpu"), torch.bfloat16)
    like = latency.of(model, Line("PHD-CSWA", 2))
    assert model.dtype == like.dtype == torch.bfloat16
    for rotary in (model.model.rotary_emb, like.model.rotary_emb):
        assert rotary.inv_freq.dtype == rotary.original_inv_freq.dtype == torch.float32
        assert torch.equal(rotary.inv_freq, type(rotary)(model.config).inv_freq)


@pytest.fixture(scope="module")
def base():
    return latency.make_model("small", latency.VANILLA, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("line", [Line("vanilla", 1), Line("PHD-SWA", 3), Line("PHD-CSWA", 3)])
@pytest.mark.parametrize("position", [64, 70, 90])
def test_flop_of_a_step_count_hidden_keys(line, position, base):
    """4 layers of 768: a product and a sum of 768 for each key that one of the K queries sees."""
    copies = torch.arange(line.copies)
    key = torch.arange(position + 1).repeat_interleave(line.copies), copies.repeat(position + 1)
    pairs = AttentionRule(line.variant.copies).sees(position, copies[:, None], *key).sum().item()
    products = 768 * (2 * 768 + 2 * 256 + 3 * 2048)
    flop = 2 * (line.copies * 4 * products + 8192 * 768) + 4 * 4 * 768 * pairs
    assert latency._step_flop(base, line, position) == flop


def test_floor_of_a_step_reads_what_is_cached(base):
    """W-1 slots of hidden copies, 0 to 15 in a chunk and then 15; whatever a static buffer has room for."""
    weights = sum(x.nbytes for x in base.parameters())
    limits = {"flop_per_second": float("inf"), "bytes_per_second": 1.0}
    entry = 4 * 2 * 256 * 4  # layers, key and value, groups, fp32
    for style, columns in (("PHD-SWA", 15), ("PHD-CSWA", (sum(range(16)) + 16 * 15) / 32)):
        floor = latency.step_floor(base, Line(style, 3), 2048, limits)
        assert floor == pytest.approx(weights + entry * (2048 + 15.5 + 2 * columns), rel=1e-12)


def test_hybrids_by_what_their_layers_keep():
    """Of four layers the first and the last are sparse; 31 local blocks before the next token, and a sink."""
    models = {
        style: latency.make_model("small", Line(style, 1), torch.device("cpu"), torch.float32)
        for style in ("vanilla", *latency.HYBRIDS)
    }
    size = {style: latency.filled_cache(model, 4096, None).nbytes() for style, model in models.items()}
    assert size["longgen-sink"] / size["vanilla"] == (2 * 4096 + 2 * 2048) / (4 * 4096)
    assert size["longgen-block"] / size["vanilla"] == (2 * 4096 + 2 * 64) / (4 * 4096)
    flop = {style: latency._prompt_flop(models["vanilla"], 4096, Line(style, 1), 0) for style in models}
    assert flop["longgen-block"] < flop["longgen-sink"] < flop["vanilla"]


def test_hidden_columns_of_a_prompt():
    """As many as the model's own step runs."""
    for line in (Line("PHD-SWA", 2), Line("PHD-CSWA", 2)):
        model = latency.make_model("small", line, torch.device("cpu"), torch.float32)
        for length in (1, 31, 32, 33, 100):
            embeddings = torch.zeros(1, length, 768)
            with torch.no_grad():
                step = model.model._step(embeddings, None, None, None, asked=1)
            assert step.end - step.first == line.hidden_columns(length, 4)


@pytest.mark.parametrize("flag", ["--rounds", "--prompts", "--decode-copies"])
def test_refused(flag, capsys):
    with pytest.raises(SystemExit):
        latency.parse([flag, "0"])
    assert f"{flag} must be at least 1, got 0" in capsys.readouterr().err


def test_no_such_device(capsys):
    with pytest.raises(SystemExit):
        latency.parse(["--device", "nowhere"])
    assert "--device nowhere: torch has no such device here" in capsys.readouterr().err

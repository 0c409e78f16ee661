"""`phd bench latency`: it runs, and its arithmetic."""

import json
from argparse import ArgumentParser

import pytest

from phd import bench
from phd.bench import CHUNK, WINDOW, Variant


def call(*arguments) -> int:
    parser = ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(["latency", *(str(x) for x in arguments)]))


def test_runs_and_says_what_it_measured(tmp_path, capsys):
    file = tmp_path / "latency.json"
    small = ["--prompts", 64, "--prefill-copies", 2, "--decode-copies", 3, "--context", 40]
    assert call(*small, "--rounds", 1, "--steps", 1, "--device", "cpu", "--output", file) == 0
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


def test_hybrids_by_what_their_layers_keep():
    """Of four layers the first and the last are sparse; 31 local blocks before the next token, and a sink."""
    import torch

    models = {
        style: bench.make_model("small", Variant(style, 1), torch.device("cpu"), torch.float32)
        for style in ("vanilla", *bench.HYBRIDS)
    }
    size = {style: bench.filled_cache(model, 4096, None).nbytes() for style, model in models.items()}
    assert size["longgen-sink"] / size["vanilla"] == (2 * 4096 + 2 * 2048) / (4 * 4096)
    assert size["longgen-block"] / size["vanilla"] == (2 * 4096 + 2 * 64) / (4 * 4096)
    flop = {style: bench._prompt_flop(models["vanilla"], 4096, Variant(style, 1), 0) for style in models}
    assert flop["longgen-block"] < flop["longgen-sink"] < flop["vanilla"]


def test_hidden_columns_of_a_prompt():
    """As many as the model's own plan runs."""
    import torch

    from phd.hf.padding import UNPADDED
    from phd.hf.plan import plan_step

    for variant in (Variant("PHD-SWA", 2), Variant("PHD-CSWA", 2)):
        model = bench.make_model("small", variant, torch.device("cpu"), torch.float32)
        for length in (1, 31, 32, 33, 100):
            plan = plan_step(model.config, None, 0, length, 1, UNPADDED, torch.float32, torch.device("cpu"))
            assert plan.columns == variant.hidden_columns(length, 4)


@pytest.mark.parametrize("flag", ["--rounds", "--prompts", "--decode-copies"])
def test_refused(flag):
    with pytest.raises(ValueError, match=f"{flag} must be at least 1"):
        call(flag, 0)

"""`phd plan` against what the allocator really gave to a training run."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.world import ROOT, megatron_globals, run_pretrain

# large enough that the model, not the program around it, is what is measured
MODEL = shlex.split("""
    --num-layers 2 --hidden-size 192 --ffn-hidden-size 512 --num-attention-heads 6
    --group-query-attention --num-query-groups 2 --swiglu --normalization RMSNorm --disable-bias-linear
    --position-embedding-type rope --untie-embeddings-and-output-weights
    --attention-dropout 0 --hidden-dropout 0 --seq-length 256 --max-position-embeddings 256
    --micro-batch-size 4 --global-batch-size 8 --lr 2e-3 --train-iters 2 --eval-iters 0 --eval-interval 100
    --seed 7 --mock-data --tokenizer-type NullTokenizer --vocab-size 4095
""")
CASES = {
    "PHD": (1, "--phd-copies 3"),
    "distributed-optimizer": (2, "--phd-copies 2 --use-distributed-optimizer"),
    "full-recomputation": (
        1,
        "--phd-copies 2 --recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    ),
    "CP2": (2, "--phd-copies 2 --context-parallel-size 2"),
    "PP2": (2, "--phd-copies 2 --pipeline-model-parallel-size 2"),
    "tables": (1, "--phd-copies 2 --phd-copy-embedding table"),
    "bf16": (1, "--bf16 --seq-length 64 --micro-batch-size 1 --global-batch-size 2"),
    "PP2-interleaved": (
        2,
        "--phd-copies 2 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 "
        "--num-layers 4 --global-batch-size 16",  # more micro batches than are in flight
    ),
}


def parameters(layers: int) -> int:
    per_layer = 192 * (2 * 192 + 2 * 64) + 3 * 192 * 512 + 2 * 192
    return layers * per_layer + 2 * 4096 * 192 + 192


_all_reduce = torch.distributed.all_reduce


def all_reduce_and_let_go(tensor: Any, *args: Any, async_op: bool = False, **kwargs: Any) -> Any:
    """All-reduce that returns when nobody else holds the tensor: gloo's thread drops its reference after the
    waiting rank has gone on, on a busy machine so late that memory of several layers' tensors adds up.
    """
    holders = tensor._use_count()
    _all_reduce(tensor, *args, **kwargs)
    while tensor._use_count() > holders:
        time.sleep(1e-4)
    return SimpleNamespace(wait=lambda: None) if async_op else None


def peak_of_a_run(flags: list[str]) -> int:
    """Most bytes that the allocator had given out at one time to a run of pretrain_phd.py."""
    import gc

    from torch.profiler import ProfilerActivity, profile

    import pretrain_phd  # noqa: F401 (what imports allocate is not the run's)

    gc.collect()  # what an earlier job left would be given back during this one
    with (
        patch.object(torch.distributed, "all_reduce", all_reduce_and_let_go),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        run_pretrain(flags)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def planned(flags: list[str], ranks: int) -> dict:
    from phd.commands.plan import make_plan

    with megatron_globals():
        return make_plan(flags, ranks=ranks, on="cpu")


@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_the_allocator_gave(case, world):
    """Within 10% on every pipeline stage; the optimizer's step and the data are in the measured number."""
    ranks, more = CASES[case]
    flags = [*MODEL, *shlex.split(more)]
    peaks = world.run(peak_of_a_run, flags, ranks=ranks)
    (plan,) = world.run(planned, flags, ranks)
    stages = plan["stages"]
    measured = [peaks[stage["stage"] * ranks // len(stages)] for stage in stages]
    assert [stage["total"] for stage in stages] == [pytest.approx(peak, rel=0.1) for peak in measured]
    tables = 4096 * 192 if case == "tables" else 0
    assert plan["parameters"] == parameters(sum(stage["layers"] for stage in stages)) + tables


ASKED = """
import os, sys, torch
asked = set()
torch.cuda.is_available = lambda: bool(asked.add(os.environ.get("CUDA_VISIBLE_DEVICES")))
torch.cuda._lazy_init = torch.cuda.device_count = torch.cuda.is_available
from phd.commands.plan import make_plan
make_plan(sys.argv[1:])
print(asked, os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


def test_gpus_are_hidden_before_megatron_is_imported(monkeypatch):
    """Which asks for them."""
    from phd.commands.plan import make_plan

    seen = []

    class Importer:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "phd.megatron":
                seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
                raise ImportError("seen enough")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delitem(sys.modules, "phd.megatron", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Importer, *sys.meta_path])
    with pytest.raises(ImportError, match="seen enough"):
        make_plan(MODEL)
    assert (seen, os.environ["CUDA_VISIBLE_DEVICES"]) == ([""], "0")


@pytest.mark.slow
def test_gpus_are_hidden_before_torch_asks_for_one():
    """Else Megatron makes fake weights there, and what meets them is on the CPU."""
    command = [sys.executable, "-c", ASKED, *MODEL, "--num-layers", "1", "--phd-copies", "2"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "{''} 0\n"


def test_parameters_do_not_depend_on_the_layout(world):
    """Nor on copies, as the cases above show, but for what embeds them; which costs no FLOPs."""
    layout = shlex.split("--num-layers 4 --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2")
    flops = set()
    for copies, embeddings in {
        "": 0,
        "--phd-copies 3": 0,
        "--phd-copies 3 --phd-copy-embedding vector": 2 * 192,
        "--phd-copies 3 --phd-copy-embedding table": 2 * 4096 * 192,
    }.items():
        (plan,) = world.run(planned, [*MODEL, *layout, *copies.split()], 4)
        assert plan["parameters"] == parameters(4) + embeddings
        if copies:
            flops.add(plan["flops_to_vanilla"])
    assert len(flops) == 1


def hybrid(flags: list[str], ranks: int) -> tuple[dict, str]:
    from phd.commands.plan import describe_plan

    plan = planned(flags, ranks)
    return plan, describe_plan(plan)


def test_layer_patterns(world):
    """A hybrid of 4 layers: its name, its layers, fewer FLOPs, and a cache of what two layers keep."""
    flags = "--num-layers 4 --attention-pattern longgen-sink.16.1.3"
    ((plan, text),) = world.run(hybrid, [*MODEL, *flags.split()], 1)
    layers = "1sink.16.1.3-2full-1sink.16.1.3"
    assert text.startswith(f"longgen-sink.16.1.3: {plan['parameters']:,} parameters, layers {layers}\n")
    assert plan["flops_to_vanilla"] < 1
    # of 256 positions the next one, which begins a block, sees the sink's 16 and 2 blocks more
    assert plan["busiest_rank"] == 1 and "busiest" not in text
    assert plan["kv_bytes"] * 4 * 256 == plan["vanilla_kv_bytes"] * (2 * 256 + 2 * 48)
    assert f"{plan['kv_bytes']:,} bytes (vanilla {plan['vanilla_kv_bytes']:,})" in text


def test_heads_that_differ(world):
    """A full head beside a streaming one, on a rank each: the other waits."""
    flags = "--tensor-model-parallel-size 2 --attention-pattern heads.1full.1sink.16.1.3"
    ((plan, text),) = world.run(hybrid, [*MODEL, *flags.split()], 2)
    full, streaming = 256 * 257 // 2, sum(min(q + 1, 48 + q % 16 + 1) for q in range(256))
    assert plan["busiest_rank"] == pytest.approx(2 * full / (full + streaming))
    assert f"the busiest computes {plan['busiest_rank']:.2f} times the mean of their attention" in text
    assert plan["kv_bytes"] * 2 * 256 == plan["vanilla_kv_bytes"] * (256 + 48)


def test_command(world, tmp_path: Path):
    """The command as users call it: the table, the JSON, a bad flag, a bad number of ranks."""
    (answers,) = world.run(commands, str(tmp_path / "plan.json"))
    plan = json.loads((tmp_path / "plan.json").read_text())
    table, no_line, flag, ranks, experts, half, loss_alone, predictions = answers
    assert table[0] == 0
    assert table[1].startswith("PHD-CSWA-2-16-32: ")
    assert "Step time: unmeasured" in table[1]
    assert plan["layout"] == {"ranks": 8, "TP": 1, "PP": 2, "CP": 1, "DP": 4}
    assert 1 < plan["flops_to_vanilla"] < 2
    assert plan["kv_bytes"] == plan["vanilla_kv_bytes"]  # at the end of a chunk
    assert no_line[0] == 2 and "phd plan [OPTION ...] pretrain_phd.py FLAG" in no_line[1]
    assert flag[0] == 2 and "unrecognized arguments: --no-such-flag" in flag[1]
    assert ranks[0] == 2 and "--ranks must be a multiple of 2" in ranks[1]
    assert experts[0] == 2 and "--num-experts" in experts[1]
    assert half[0] == 2 and "--fp16: phd plan knows --bf16" in half[1]
    assert loss_alone[0] == 2 and "no layer to prune" in loss_alone[1]
    assert "pass --no-phd-prune-last-layer" in loss_alone[1]
    assert predictions[0] == 2 and "--mtp-num-layers (multi-token prediction) (" in predictions[1]


def commands(output: str) -> list[tuple[int, str]]:
    import contextlib
    import io

    from phd.commands.cli import main

    line = ["pretrain_phd.py", *MODEL, "--phd-copies", "2", "--pipeline-model-parallel-size", "2"]
    answers = []
    for argv in (
        ["--ranks", "8", "--json", output, *line, "--global-batch-size", "16"],
        ["--ranks", "8"],
        [*line, "--no-such-flag"],
        ["--ranks", "3", *line],
        [*line, "--num-experts", "4"],
        [*line, "--phd-copies", "1", "--fp16"],
        [*line, "--pipeline-model-parallel-layout", "Ett|L"],
        [*line, "--phd-copies", "1", "--mtp-num-layers", "1"],
    ):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), megatron_globals():
            try:
                status = main(["plan", *argv])
            except SystemExit as stop:
                status = int(stop.code or 0)
        answers.append((status, text.getvalue()))
    return answers

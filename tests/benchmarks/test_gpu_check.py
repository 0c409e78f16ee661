"""`make gpu-check` as far as it goes without a GPU: every piece dry, and what becomes of failures."""

import json
import subprocess
import sys

import pytest

from benchmarks import gpu_check
from benchmarks.gpu import attention, curves, latency, optimizers, peak, training
from benchmarks.gpu.piece import Skipped, missing_package, target
from benchmarks.gpu.summary import add_shares
from benchmarks.gpu.tests import counts
from benchmarks.gpu.training import add_ratios, targets
from tests.world import ROOT


@pytest.mark.slow
def test_every_piece_runs_dry(tmp_path):
    file = tmp_path / "check.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--dry", "--output", str(file), "--budget", "1200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    report = json.loads(file.read_text())
    pieces = report["pieces"]
    assert done.returncode == 0, json.dumps(pieces)
    assert list(pieces) == list(gpu_check.PIECES)
    assert {name: piece["why"] for name, piece in pieces.items() if piece["status"] != "ok"} == {}
    assert all(piece["seconds"] > 0 for piece in pieces.values())
    assert pieces["environment"]["torch"] and pieces["tests"]["passed"] > 0
    for name, check in PIECES.items():
        check(pieces[name])
    vanilla, phd = pieces["training"]["runs"].values()
    assert vanilla["ms"] > 0 and phd["share_of_matmul"] > 0
    assert phd["times_flops"] > phd["times_floor"] > 0
    assert [len(curve) for curve in pieces["curves"]["curves"].values()] == [6, 6]
    assert min(pieces["curves"]["largest_difference"].values()) > 0
    for name in ("torch", "torch, fused"):
        assert pieces["optimizers"]["steps"][name]["share_of_copy"] > 0
    assert pieces["longgen"]["lengths"]["64"]["longgen-sink"]["train_median"] > 0
    assert "training step: PHD / (its FLOPs x vanilla)" in done.stdout
    assert "longgen-sink, 64 tokens, decode: full / hybrid" in done.stdout


def check_attention(result):
    (size,) = result["sizes"]
    assert size["phd_times_floor"] > 0 and size["dense_over_phd"] > 0
    assert "not support backward on CPU" in size["backends"]["flex"]["refused"]


def check_optimizers(result):
    assert all(result["steps"][name]["gb_per_second"] > 0 for name in ("torch", "torch, fused"))


def check_latency(result):
    assert {row["style"] for row in result["prefill"]} == {"vanilla", "naive", "PHD-CSWA"}
    assert {row["style"] for row in result["decode"]} == {"vanilla", "naive", "PHD-CSWA"}


def check_peak(result):
    assert result["bf16_tflops"] > 0 and result["gb_per_second"] > 0


PIECES = {
    "attention": check_attention,
    "latency": check_latency,
    "optimizers": check_optimizers,
    "peak": check_peak,
}


@pytest.mark.parametrize("piece", [attention, latency, optimizers, peak], ids=PIECES)
def test_a_piece_runs_dry(piece, monkeypatch):
    """In this process."""
    kept: dict = {}
    monkeypatch.setattr(piece, "keep", lambda **numbers: kept.update(numbers), raising=False)
    PIECES[piece.__name__.rpartition(".")[2]](kept | piece.run(dry=True))


def test_a_piece_that_fails_or_hangs_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    file = tmp_path / "check.json"
    monkeypatch.setattr(gpu_check, "PIECES", {"peak": 0.0, "no_such_piece": 0.5, "environment": 0.5})
    assert gpu_check.main(["--dry", "--output", str(file)]) == 1
    pieces = json.loads(file.read_text())["pieces"]
    assert [piece["status"] for piece in pieces.values()] == ["timed out", "failed", "ok"]
    assert "stopped after 0 s" in pieces["peak"]["why"]
    assert "No module named benchmarks.gpu.no_such_piece" in pieces["no_such_piece"]["why"]
    assert "no_such_piece" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "torch sees no CUDA device; --dry" in capsys.readouterr().err


def test_a_missing_package_is_no_failure(tmp_path):
    assert missing_package("ModuleNotFoundError: No module named 'flash_attn.x'\n") == "flash_attn.x"
    assert missing_package("[rank0]: ModuleNotFoundError: No module named 'apex'\n") == "apex"
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite><testcase classname="a" name="passes"/>'
        '<testcase classname="a" name="fails"><failure message="m">at\nE  wrong</failure></testcase>'
        '<testcase classname="a" name="skips"><skipped message="no such kernel"/></testcase>'
        '<testcase classname="b" name=""><error message="collection failure">E   ModuleNotFoundError: '
        "No module named 'wandb'</error></testcase></testsuite></testsuites>"
    )
    assert counts(junit) == {
        "passed": 1,
        "failed": 1,
        "skipped": 2,
        "failures": {"a::fails": "E  wrong"},
        "skips": {"no such kernel": 1, "no package wandb": 1},
    }


@pytest.mark.parametrize(
    "output",
    [
        "ModuleNotFoundError: No module named 'phd.x'",
        "ModuleNotFoundError: No module named 'scaled_masked_softmax_cuda'",
        "ModuleNotFoundError: No module named 'apex'\n\nDuring handling ...\n\nRuntimeError: wrong",
        "ModuleNotFoundError: No module named 'apex'\n\nDuring handling ...\n\nAssertionError",
        "warning: No module named 'apex'",
    ],
    ids=["ours", "kernel", "another-error", "assertion", "no-error"],
)
def test_a_fault_is_no_missing_package(output):
    assert missing_package(f"Traceback ...\n{output}\n") is None


def test_a_training_that_lacks_a_package_does_not_end_the_others(monkeypatch):
    kept: dict = {}
    monkeypatch.setattr(training, "keep", kept.update)

    def steps(what, dry):
        if what.copies == 1:
            raise Skipped("no package apex")
        return {"ms": 1.0}

    monkeypatch.setattr(training, "steps", steps)
    assert training.run(dry=True) == {}
    assert kept["runs"] == {"300k K=1": {"skipped": "no package apex"}, "300k K=2": {"ms": 1.0}}
    monkeypatch.setattr(training, "DRY", training.DRY[:1])
    with pytest.raises(Skipped, match="no package apex"):
        training.run(dry=True)


def test_curves_keep_what_was_measured_where_time_ends(monkeypatch):
    trained: list[list[str]] = []

    def train(flags):
        trained.append(flags)
        return {}, [{"lm loss": 2.0 + len(trained)}] * 6

    monkeypatch.setattr(curves, "example_flags", lambda *names: [])
    monkeypatch.setattr(curves, "tokenized", lambda folder: [])
    monkeypatch.setattr(curves, "train", train)
    assert curves.run(dry=True)["largest_difference"] == {"bf16, seed 2 to bf16, seed 1": 1.0}
    monkeypatch.setattr(curves, "time_left", lambda: -1.0)
    result = curves.run(dry=True)
    assert [*result["curves"]] == ["bf16, seed 1"] and result["largest_difference"] == {}
    assert result["left_out"]["bf16, seed 2"] == "no time left: another run took 0 s"
    assert len(trained) == 3


def test_adam_is_measured_as_megatron_calls_it():
    """Without ``fused``."""
    assert optimizers.ADAMS["torch"] == ("torch.optim", "AdamW", {})


def test_ratios_and_targets():
    """A step is held against its FLOPs; over K times vanilla is a number beside it."""
    runs = {
        "1.2b K=1": {"ms": 100.0, "tokens_per_second": 50.0, "tflops": 200.0},
        "1.2b K=2": {"ms": 190.0, "tokens_per_second": 24.0, "flops_over_vanilla": 1.9},
        "1.2b K=1 FP8 delayed": {"ms": 75.0, "tokens_per_second": 65.0},
        "550m K=1": {"failed": "out of memory"},
        "550m K=2": {"ms": 1.0, "tokens_per_second": 1.0, "flops_over_vanilla": 1.9},
    }
    add_ratios(runs)
    assert [(row["value"], row["reached"]) for row in targets(runs)] == [(1.0, True), (1.3, True)]
    assert runs["1.2b K=2"]["times_floor"] == 0.95
    runs["1.2b K=2"]["mfu"], runs["1.2b K=1 FP8 delayed"]["mfu"] = 0.46, 0.3  # FP8's is of bf16's peak
    assert [row["value"] for row in targets(runs)] == [1.0, 0.46, 1.3]
    runs["1.2b K=2"]["ms"] = 200.0
    add_ratios(runs)
    assert not targets(runs)[0]["reached"]
    assert target("", 1.0, at_most=1.0)["reached"] and target("", 1.0, at_least=1.0)["reached"]
    pieces = {"peak": {"bf16_tflops": 800.0, "gb_per_second": 4000.0}, "training": {"runs": runs}}
    add_shares(pieces)
    assert runs["1.2b K=1"]["share_of_matmul"] == 0.25

"""FLOPs, rates and arguments that a run records of itself."""

import json
import shlex
import sys
from argparse import Namespace
from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from phd.compare.arguments import differences
from phd.run.record import RUN_FILE, read_run_info
from tests.training.test_arguments import FLAGS
from tests.trainings import MIXTURE_OF_EXPERTS, VARIANTS
from tests.world import megatron_globals, run_pretrain

EXPERTS = {
    "everywhere": MIXTURE_OF_EXPERTS,
    "some-layers": [*MIXTURE_OF_EXPERTS, "--moe-layer-freq", "[0,1,1,0]"],
    "shared": [
        *MIXTURE_OF_EXPERTS,
        *("--moe-shared-expert-intermediate-size", "32", "--moe-shared-expert-gate"),
    ],
}
OTHERS = {**EXPERTS, "output-gate": ["--attention-output-gate"]}


def count_flops(flags: list[str]) -> int:
    """Of an iteration, as far as torch's counter knows the operators."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run_pretrain(flags)
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def flops(world, base_flags, tmp_path_factory):
    """flops(variant, kind, more): of an iteration of 2 samples, counted and recorded."""

    @cache
    def run(variant: str, kind: str, more: str) -> tuple[int, float]:
        folder = tmp_path_factory.mktemp("flops")
        flags = [*base_flags, *VARIANTS[variant], *OTHERS.get(kind, []), *more.split()]
        flags += ["--global-batch-size", "2", "--train-iters", "1", "--eval-iters", "0"]
        (counted,) = world.run(count_flops, [*flags, "--tensorboard-dir", str(folder)])
        return counted, 2 * 40 * read_run_info(folder / RUN_FILE).flops_per_token

    return run


@pytest.mark.parametrize(
    ("variant", "kind", "more"),
    [
        ("vanilla", "everywhere", ""),
        ("vanilla", "output-gate", ""),
        ("PHD-CSWA-3-5-12", "some-layers", ""),
        ("PHD-CSWA-3-5-12", "shared", ""),
        ("PHD-CSWA-3-5-12", "output-gate", "--no-phd-prune-last-layer"),
    ],
)
def test_other_layers_take_the_flops_that_are_recorded(variant, kind, more, flops):
    """More than the dense model, whose attention is the same; also of copies and of a pruned last layer. The
    other kinds of the vanilla model are below.
    """
    counted, recorded = flops(variant, kind, more)
    dense_counted, dense_recorded = flops(variant, "dense", more)
    assert counted > dense_counted
    assert counted - dense_counted == pytest.approx(recorded - dense_recorded, rel=1e-12)


def ours_and_megatrons(cases: list[list[str]]) -> list[tuple[float, float]]:
    """FLOPs of a token by our formula and by Megatron's."""
    from megatron.training.training import num_floating_point_operations

    from phd.config import PHDConfig
    from phd.training.arguments import parse_for_tool
    from phd.training.metrics import training_flops

    answers = []
    for flags in cases:
        with megatron_globals():
            sys.argv = ["pretrain_phd.py", *FLAGS, *flags]
            args = parse_for_tool()
            megatrons = num_floating_point_operations(args, 1) / args.seq_length
            answers.append((training_flops(args, PHDConfig()), megatrons))
    return answers


def test_vanilla_flops_are_megatrons(world):
    """Which counts half a position less for causal attention, and no router and no gate of shared experts."""
    latent = [*EXPERTS["some-layers"], "--moe-latent-size", "16"]
    cases = {"dense": ([], 0), **{name: (flags, 4) for name, flags in OTHERS.items()}, "latent": (latent, 2)}
    cases["some-layers"] = (EXPERTS["some-layers"], 2)
    cases["output-gate"] = (OTHERS["output-gate"], 0)
    (answers,) = world.run(ours_and_megatrons, [flags for flags, _ in cases.values()])
    for (ours, megatrons), (name, (_, routers)) in zip(answers, cases.items(), strict=True):
        gates = 4 * (name == "shared")
        uncounted = 6 * 4 * 64 + 6 * (routers * 4 + gates) * 64
        assert ours == pytest.approx(megatrons + uncounted, rel=1e-12)


def rates_of_a_schedule() -> list[float]:
    from megatron.core.num_microbatches_calculator import update_num_microbatches

    from phd.config import PHDConfig
    from phd.training.arguments import parse_for_tool
    from phd.training.metrics import RunMetrics

    at = FLAGS.index("--global-batch-size")
    schedule = ["--step-batch-size-schedule", "0:4 400:8"]
    with megatron_globals():
        sys.argv = ["pretrain_phd.py", *FLAGS[:at], *FLAGS[at + 2 :], *schedule]
        metrics = RunMetrics(parse_for_tool(), PHDConfig())
        rates = []
        for samples in (0, 20):
            update_num_microbatches(samples, consistency_check=False)
            rates.append(metrics.rates(0.5)["phd/tokens-per-second"])
    return rates


def test_rates_follow_the_batch_size(world):
    """Of 4 samples, and from 400 tokens on of 8."""
    assert world.run(rates_of_a_schedule) == [[4 * 40 / 0.5, 8 * 40 / 0.5]]


def recorded_arguments(flags: list[str]) -> str:
    from phd.config import PHDConfig
    from phd.training.arguments import parse_for_tool
    from phd.training.metrics import RunMetrics, about_run

    with megatron_globals():
        sys.argv = ["pretrain_phd.py", *FLAGS, *flags]
        args = parse_for_tool()
        return json.dumps(about_run(args, PHDConfig(), RunMetrics(args, PHDConfig()), 0)["arguments"])


def test_arguments_of_every_kind_are_recorded(world):
    """Tuples, types and enumerations too, or `phd compare` would not notice in what runs differ. Types and
    enumerations that no flag gives are not: older records lack them, and they say nothing new.
    """
    flags = "--bf16 --use-distributed-optimizer --use-precision-aware-optimizer --exp-avg-dtype=bf16"
    flags += " --window-size 8,0 --attention-backend flash"
    runs = [
        Namespace(arguments=json.loads(world.run(recorded_arguments, shlex.split(flags))[0]))
        for flags in ("", flags)
    ]
    new = {"window_size": [8, 0], "attention_backend": "flash", "exp_avg_dtype": "torch.bfloat16"}
    assert new.items() <= runs[1].arguments.items()
    # the backend is another kernel for the same computation
    assert {"window_size", "exp_avg_dtype"} <= set(differences(*runs))
    old = {name: value for name, value in runs[0].arguments.items() if name not in new}
    assert differences(runs[0], Namespace(arguments=old)) == []
    assert "params_dtype" not in runs[1].arguments


def served_by_a_nameless_function() -> str:
    from phd.training import metrics

    with patch.object(metrics.clip_grads, "l2_norm_impl", SimpleNamespace(__module__=None)):
        return metrics._served_by(Namespace(gradient_accumulation_fusion=False))["clipping"]


def test_a_compiled_function_may_have_no_module(world):
    assert world.run(served_by_a_nameless_function) == ["torch"]

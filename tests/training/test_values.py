"""Values, sizes and modules: what no training can have ends in one line with the flag, before anything is
touched.
"""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.training.test_arguments import FLAGS, failure, refused_at_start, without

RANKS = ["--pipeline-model-parallel-size", "2"]


def answers(cases: list[str]) -> list[str]:
    return [refused_at_start([*FLAGS, *case.split(" ")]) for case in cases]


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ("--log-interval 0", "--log-interval 0 must be at least 1"),
        ("--seed 0", "--seed 0 must be at least 1"),
        ("--micro-batch-size 0", "--micro-batch-size 0 must be at least 1"),
        ("--micro-batch-size -2", "--micro-batch-size -2 must be at least 1"),
        ("--tensorboard-log-interval 0", "--tensorboard-log-interval 0 must be at least 1"),
        ("--num-layers 0", "--num-layers 0 must be at least 1"),
        ("--eval-interval 0", "--eval-interval 0 must be at least 1"),
        ("--train-iters 0", "--train-iters 0 must be at least 1"),
        ("--eval-iters -1", "--eval-iters -1 must be at least 0"),
        ("--lr nan", "--lr nan is not a number"),
        ("--clip-grad nan", "--clip-grad nan is not a number"),
        ("--hidden-dropout 1.5", "--hidden-dropout 1.5 must be at least 0 and less than 1"),
        ("--run-dir ", '--run-dir "" is empty, as an unset variable is: give it a value or leave it out'),
        ("--save ", '--save "" is empty, as an unset variable is: give it a value or leave it out'),
        (
            "--data-path ",
            '--data-path "" holds an empty path, as an unset variable is: leave that out',
        ),
        ("--seed 0 --lr nan", "--seed 0 must be at least 1; --lr nan is not a number"),
    ],
)
def test_one_value(world, flags, answer):
    assert world.run(answers, [flags]) == [[answer]]


def test_what_the_parser_refuses_is_one_line(world):
    """Without its eight hundred flags."""
    cases = ["--exp-avg-dtype foo", "--learning-rate 1e-3", "--train-iters 1e3", "--seq-length"]
    (said,) = world.run(answers, cases)
    assert [text.split(" (")[0] for text in said] == [
        "argument --exp-avg-dtype: invalid choice: 'foo'",
        "unrecognized arguments: --learning-rate 1e-3",
        "argument --train-iters: invalid int value: '1e3'",
        "argument --seq-length: expected one argument",
    ]


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (
            "--global-batch-size 5",
            "--global-batch-size 5 is no multiple of 2 (--micro-batch-size 2 x 1 data-parallel rank(s)): "
            "take 4 or 6",
        ),
        (
            "--eval-global-batch-size 1",
            "--eval-global-batch-size 1 is no multiple of 2 (--eval-micro-batch-size 2 x 1 data-parallel "
            "rank(s)): take 2",
        ),
        (
            "--hidden-size 66",
            "--hidden-size 66 is no multiple of --num-attention-heads 4: correct one, or pass --kv-channels",
        ),
        (
            "--num-query-groups 3",
            "--num-attention-heads 4 is no multiple of --num-query-groups 3: correct one",
        ),
        (
            "--num-experts 2 --moe-router-topk 3",
            "--moe-router-topk 3 is more than --num-experts 2: lower it",
        ),
        (
            "--seq-length 64",
            "--seq-length 64 is more than --max-position-embeddings 40: raise that, or take shorter samples",
        ),
        (
            "--tensor-model-parallel-size 2",
            "1 rank(s) do not divide into groups of 2 (--tensor-model-parallel-size 2 x "
            "--pipeline-model-parallel-size 1 x --context-parallel-size 1): start a multiple of that "
            "(NNODES x NPROC_PER_NODE), or change the flags",
        ),
    ],
)
def test_sizes_that_do_not_fit(world, flags, answer):
    assert world.run(answers, [flags]) == [[answer]]


@pytest.mark.parametrize(
    "flags",
    [
        "--global-batch-size 4",
        "--global-batch-size 6",
        "--hidden-size 66 --kv-channels 16",
        "--seq-length 64 --max-position-embeddings 64",
        "--num-experts 2 --moe-router-topk 2",
    ],
)
def test_the_remedies(world, flags):
    assert world.run(answers, [flags]) == [[""]]


def test_sizes_that_are_missing(world):
    flags = [*without("--micro-batch-size"), "--seed", "7"]
    flags = [*flags[: flags.index("--hidden-size")], *flags[flags.index("--hidden-size") + 2 :]]
    answer = "--hidden-size, --micro-batch-size are missing: they have no defaults"
    assert world.run(refused_at_start, flags) == [answer]


def test_fewer_samples_than_a_batch(world):
    """It "finished" at iteration 0."""
    few = [*without("--train-iters"), "--train-samples"]
    (answer,) = world.run(refused_at_start, [*few, "7"])
    assert answer.startswith("--train-samples 7 is less than one batch (--global-batch-size 8)")
    assert world.run(refused_at_start, [*few, "8"]) == [""]


def test_batches_of_a_schedule(world):
    few = [*without("--global-batch-size"), "--step-batch-size-schedule"]
    (answer,) = world.run(refused_at_start, [*few, "0:4 1K:7"])
    assert answer.startswith("a batch of --step-batch-size-schedule of 7 is no multiple of 2")
    (answer,) = world.run(refused_at_start, [*few, "foo"])
    assert answer.startswith('Megatron refuses these flags: Invalid schedule entry "foo"')
    assert world.run(refused_at_start, [*few, "0:4 1K:8"]) == [""]


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ("--min-lr 0.1", "it wants --min-lr <= --lr (--min-lr 0.1, --lr 0.002)"),
        (
            "--weight-decay-incr-style linear",
            "it wants --start-weight-decay to be given (--start-weight-decay (not given), "
            "--weight-decay-incr-style linear)",
        ),
        (
            "--log-memory-interval 3 --log-interval 2",
            "it wants --log-memory-interval % --log-interval == 0 (--log-memory-interval 3, "
            "--log-interval 2)",
        ),
        (
            "--recompute-granularity full",
            'Using recompute_granularity: full so recompute_method must be "block" or "uniform" '
            "(--recompute-granularity full)",
        ),
        ("--fp16 --bf16", "it wants not --bf16 (--bf16, --fp16)"),
        (
            "--batch-size 4",
            "--batch-size argument is no longer valid, use --micro-batch-size instead (--batch-size 4)",
        ),
    ],
)
def test_megatrons_own_checks_name_flags(world, flags, answer):
    """Those without a text too, and those of the model's config, which come after the run folder is taken."""
    assert world.run(answers, [flags]) == [[f"Megatron refuses these flags: {answer}"]]


def raised() -> list[str]:
    """How errors of each kind are told that some code of Megatron raises."""
    from argparse import ArgumentParser

    from phd.training.flags import Flags
    from phd.training.refusals import in_our_words

    parser = ArgumentParser()
    parser.add_argument("--log-interval", type=int)
    parser.add_argument("--dtype")
    args = parser.parse_args(["--log-interval", "0", "--dtype", "foo"])

    def leave() -> None:
        if args.log_interval is not None:
            sys.exit()

    told = []
    for call in (
        lambda: 1 % args.log_interval,
        lambda: {}[args.dtype],
        lambda: len(args.log_interval),
        leave,
    ):
        try:
            with in_our_words(args, Flags(parser)):
                call()
        except ValueError as error:
            told.append(str(error))
    return told


def test_errors_of_every_kind_name_flags(world):
    (told,) = world.run(raised)
    assert all(text.startswith("Megatron refuses these flags: ") for text in told)
    assert ["--log-interval 0" in told[0], "--dtype foo" in told[1]] == [True, True]
    assert ["--log-interval 0" in told[2], "--log-interval 0" in told[3]] == [True, True]


@pytest.mark.parametrize(
    ("flags", "module"),
    [
        ("--num-distributed-optimizer-instances 2", "einops"),
        ("--optimizer muon", "emerging_optimizers"),
        ("--transformer-impl transformer_engine", "transformer_engine"),
        ("--moe-permute-fusion", "transformer_engine"),
        ("--enable-ft-package", "nvidia_resiliency_ext"),
        ("--adlr-autoresume", "userlib"),
        ("--run-workload-inspector-server", "workload_inspector"),
    ],
)
def test_modules_that_are_not_installed(world, flags, module):
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    (said,) = world.run(answers, [flags])
    assert f"needs the Python module {module}, which is not installed: " in said[0]
    assert said[0].startswith("--" + flags.split()[0].strip("-"))


def test_experts_on_ranks(world):
    """The group size is only found out when groups are made."""
    flags = (
        "--tensor-model-parallel-size 2 --sequence-parallel --num-experts 2 --expert-model-parallel-size 2"
    )
    apart = f"{flags} --expert-tensor-parallel-size 1"
    said, same = world.run(answers, [flags, apart], ranks=2)
    assert said == same
    assert said[0].startswith("2 rank(s) do not divide into groups of 4 (--expert-model-parallel-size 2 x ")
    assert said[0].endswith("or pass --expert-tensor-parallel-size 1") and said[1] == ""


def test_no_layer_to_prune(world):
    """Every rank says so, at start-up: only the last one's model would lack it."""
    cases = [
        "--phd-copies 2 --account-for-loss-in-pipeline-split --num-layers 1",
        "--phd-copies 2 --pipeline-model-parallel-layout Et*4|L",
        "--phd-copies 2 --pipeline-model-parallel-layout Et*3|tL",
        "--phd-copies 2 --pipeline-model-parallel-layout Et*4|L --no-phd-prune-last-layer",
    ]
    said = world.run(answers, [" ".join([*RANKS, case]) for case in cases], ranks=2)
    assert said[0] == said[1]
    assert [text.split(" (")[0] for text in said[0]] == [
        *["the last pipeline stage has no layer to prune"] * 2,
        *["", ""],
    ]


# Divided by where a value below 1 cannot come: other checks of ours, or computed from what is checked.
NOT_LISTED = {
    *("ckpt_format", "grpo_iterations", "mtp_num_layers", "linear_attention_freq", "no_rope_freq"),
    *("moe_layer_freq", "mup_width_mult", "mup_attn_scale_power"),
}


def listed_values() -> tuple[set[str], set[str]]:
    """Arguments that flags set, and those with a least value."""
    from phd.training.arguments import _parse
    from phd.training.values import AT_LEAST

    sys.argv = ["pretrain_phd.py", *FLAGS]
    return {*_parse()[1]}, {*AT_LEAST}


def test_what_megatron_divides_by_has_a_least_value(world):
    """A new release shows here what it divides by."""
    ((flags, listed),) = world.run(listed_values)
    package = importlib.util.find_spec("megatron.core")
    assert package is not None and package.submodule_search_locations is not None
    divided = set()
    for path in (Path(package.submodule_search_locations[0]).parent / "training").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Div, ast.FloorDiv, ast.Mod)):
                divided |= {part.attr for part in ast.walk(node.right) if isinstance(part, ast.Attribute)}
    assert len(divided & flags) > 15
    assert not (divided & flags) - listed - NOT_LISTED
    assert listed <= flags, "there is no such flag any more"


def test_nothing_is_taken_before(world, tmp_path):
    """The run folder stays as it is: there is none."""
    for bad in ("--seed 0", "--recompute-granularity full", "--optimizer muon", "--global-batch-size 5"):
        (end,) = world.run(failure, [*FLAGS, "--run-dir", str(tmp_path / "run"), *bad.split()])
        assert "pretrain_phd.py: error: " in end and "Traceback" not in end
    assert not (tmp_path / "run").exists()

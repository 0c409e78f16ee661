"""--variant says what its flags say; older flags stop with their new spelling; our list is frozen."""

from argparse import Namespace
from unittest.mock import patch

import pytest

from tests.training.test_arguments import FLAGS, parse, refused_at_start

OURS = {
    *("--phd-copies", "--phd-window", "--phd-chunk", "--phd-naive", "--no-phd-prune-last-layer"),
    *("--phd-consecutive-positions", "--phd-copy-embedding"),
    "--phd-copy-embedding-warmup-iters",
    *("--phd-attention-backend", "--attention-pattern", "--variant", "--override-phd-variant"),
    *("--run-dir", "--keep-last-checkpoints", "--sample-prompts", "--sample-tokens", "--data-iters"),
    *("--rope-max-scale", "--rope-context", "--rope-still-tokens"),
    *("--train-only", "--lora-rank", "--lora-alpha", "--s2-groups", "--full-heads", "--full-heads-share"),
    *(
        "--position-gaps-to",
        "--position-sentence-ends",
        "--mask-document-starts",
        "--sort-batch-by-documents",
    ),
}
STOPPED = {
    *("--attention-pattern-block", "--attention-pattern-sink-blocks", "--attention-pattern-local-blocks"),
    *("--attention-pattern-stride", "--attention-pattern-stride-local-blocks"),
}


def taken(names: list[str]) -> list[tuple]:
    """What --variant makes of each name."""
    from phd.training.variant_flags import take_variant

    found = []
    for name in names:
        args = parse(["--variant", name])
        with patch("sys.argv", ["pretrain_phd.py", "--variant", name]):
            take_variant(args)
        assert not hasattr(args, "variant")
        fields = (
            *("phd_copies", "phd_window", "phd_chunk", "phd_naive", "attention_pattern"),
            *("phd_copy_embedding", "phd_consecutive_positions"),
        )
        found.append(tuple(getattr(args, field) for field in fields))
    return found


def test_a_name_says_what_the_flags_say(world):
    names = ["vanilla", "PHD-CSWA-2-16-32", "PHD-SWA-5-16-inf", "PHD-3", "naive-2", "longgen-sink"]
    names += ["PHD-CSWA-3-5-12+table+1sink.4.1.2-3full", "naive-2-consecutive"]
    assert world.run(taken, names) == [
        [
            (1, 1, 0, False, "full", "none", False),
            (2, 16, 32, False, "full", "none", False),
            (5, 16, 0, False, "full", "none", False),
            (3, 1, 0, False, "full", "none", False),
            (2, 1, 0, True, "full", "none", False),
            (1, 1, 0, False, "longgen-sink", "none", False),
            (3, 5, 12, False, "1sink.4.1.2-3full", "table", False),
            (2, 1, 0, True, "full", "none", True),
        ]
    ]


def answers(cases: list[str]) -> list[str]:
    return [refused_at_start([*FLAGS, *case.split(" ")]) for case in cases]


REFUSED = {
    "--variant PHD-2-": "--variant: 'PHD-2-' names no variant: 'PHD-2-' names no copies: write vanilla, "
    "naive-K, naive-K-consecutive, PHD-K, PHD-SWA-K-W-inf or PHD-CSWA-K-W-C",
    "--variant PHD-2 --phd-window 16": "--variant PHD-2 says what --phd-window says: leave one out",
    "--attention-pattern-block 16": "--attention-pattern-block is part of --attention-pattern now: write "
    "--attention-pattern sink.16.1.32 (--help lists all flags)",
    "--attention-pattern longgen-block --attention-pattern-stride=8 --attention-pattern-block 16": (
        "--attention-pattern-stride is part of --attention-pattern now: write --attention-pattern "
        "longgen-block.16.8.1 (--help lists all flags)"
    ),
}


def test_refusals(world):
    (said,) = world.run(answers, [*REFUSED])
    assert said == [*REFUSED.values()]


def flags_of_ours() -> tuple[set[str], set[str]]:
    """Those in --help, and those that stop."""
    from argparse import SUPPRESS, ArgumentParser

    from megatron.training.arguments import add_megatron_arguments

    from phd.training.arguments import add_phd_arguments

    parser = add_megatron_arguments(ArgumentParser())
    megatrons = {id(action) for action in parser._actions}
    added = [action for action in add_phd_arguments(parser)._actions if id(action) not in megatrons]
    shown = {action.option_strings[0] for action in added if action.help != SUPPRESS}
    return shown, {action.option_strings[0] for action in added} - shown


def test_the_list_of_our_flags(world):
    """A new flag is a decision: it is entered here, and in docs/training.md."""
    assert world.run(flags_of_ours) == [(OURS, STOPPED)]


def test_the_new_spelling_of_a_stopped_flag_is_taken(world):
    """The spelling that the message for the old flags names is accepted."""
    (found,) = world.run(parse, [*FLAGS, "--attention-pattern", "longgen-block.16.8.1"])
    assert isinstance(found, Namespace) and found.attention_pattern == "longgen-block.16.8.1"


@pytest.mark.parametrize("name", ["PHD-CSWA-2-16-32+longgen-sink", "naive-2"])
def test_phd_variant(name, capsys):
    from phd.commands import cli

    assert cli.main(["variant", name]) == 0
    assert capsys.readouterr().out == f"{name}\n"


def test_phd_variant_of_another_spelling_or_none(capsys):
    from phd.commands import cli

    assert cli.main(["variant", "PHD-CSWA-2-1-32+2*sink,4*full", "--num-layers", "6"]) == 0
    assert capsys.readouterr().out == "PHD-2+2sink-4full\n2sink-4full\n"
    assert cli.main(["variant", "PHD-two"]) == 2
    assert (
        "phd variant: error: 'PHD-two' names no variant: 'PHD-two' names no copies" in capsys.readouterr().err
    )
    assert cli.main(["variant", "2sink-4full", "--num-layers", "7"]) == 2
    assert "the attention pattern 2sink-4full has 6 layers, the model 7" in capsys.readouterr().err

"""`phd data prepare` builds what the training reads, and nothing is left for the training to build."""

import argparse
from pathlib import Path

import pytest

from phd.commands.prepare import add_arguments, run
from tests.world import megatron_globals


def prepare(flags: list[str]) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(flags))


def prepare_on_rank(flags: list[str]) -> int:
    with megatron_globals():
        return prepare(flags)


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_builds_nothing_more(ranks, world, base_flags, tmp_path):
    cache = tmp_path / "cache"
    where = base_flags.index("--data-path") + 1
    blend = ["--data-path", "3", base_flags[where], "1", base_flags[where]]
    flags = [*base_flags[: where - 1], *blend, *base_flags[where + 1 :], "--data-cache-path", str(cache)]
    flags += ["--train-iters", "2"]
    writers = ["--tensorboard-dir", str(tmp_path / "tensorboard")]
    assert world.run(prepare_on_rank, ["--world-size", str(ranks), "--", *flags, *writers]) == [0]
    prepared = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert len(prepared) > 4
    assert not (tmp_path / "tensorboard").exists()
    world.pretrain(flags, ranks=ranks)
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == prepared


def test_wants_the_place():
    with pytest.raises(ValueError, match="give --data-cache-path"):
        prepare(["--", "--data-path", "a"])
    with pytest.raises(ValueError, match="--world-size must be at least 1"):
        prepare(["--world-size", "0", "--", "--data-cache-path", str(Path("a"))])
    with pytest.raises(ValueError, match="--world-size must be at least 1"):
        prepare(["--world-size", "0", "--", "--data-cache-path=a"])

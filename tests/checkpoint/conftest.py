"""Checkpoints of six steps, in several layouts, trained once for all tests of this folder."""

import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from phd.run.status import TRACKER
from tests.trainings import VARIANTS as COPIES
from tests.trainings import losses

LAYOUTS = {
    "single": (1, ""),
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "CP2": (2, "--context-parallel-size 2 --phd-window 5"),
    "DP2-distopt": (2, "--use-distributed-optimizer"),
    "DP2-reshardable": (
        2,
        "--use-distributed-optimizer --ckpt-fully-parallel-save --dist-ckpt-optim-fully-reshardable",
    ),
    # each copy has its own mask, drawn in the same order after a resume
    "dropout": (1, "--hidden-dropout 0.2"),
}
PHD = COPIES["PHD-CSWA-3-5-12"]
VARIANTS = COPIES | {
    f"PHD-CSWA-3-5-12+{embedding}": [*PHD, "--phd-copy-embedding", embedding]
    for embedding in ("vector", "table")
}
SCHEDULE = ["--train-iters", "6", "--global-batch-size", "4"]


@pytest.fixture(scope="session")
def train(world, base_flags):
    """train(layout, folder): six steps in all; saves into and loads from ``folder``."""

    def run(
        layout: str, folder: Path, *more: str, variant: str = "PHD-CSWA-3-5-12"
    ) -> dict[str, list[float]]:
        ranks, flags = LAYOUTS[layout]
        log = folder.parent / f"log-{len(list(folder.parent.iterdir()))}"
        paths = ["--load", str(folder), "--save", str(folder), "--tensorboard-dir", str(log)]
        schedule = [*SCHEDULE, "--save-interval", "3"]
        world.pretrain([*base_flags, *VARIANTS[variant], *flags.split(), *schedule, *paths, *more], ranks)
        return losses(log)

    return run


@pytest.fixture(scope="session")
def whole(train, tmp_path_factory):
    """whole(layout, variant): the checkpoints of a run that is never stopped, of three and of six steps, and
    its losses; trained once.
    """
    done: dict[tuple[str, str], tuple[Path, dict[str, list[float]]]] = {}

    def run(layout: str, variant: str = "PHD-CSWA-3-5-12") -> tuple[Path, dict[str, list[float]]]:
        if (layout, variant) not in done:
            folder = tmp_path_factory.mktemp("whole") / "ckpt"
            done[layout, variant] = folder, train(layout, folder, variant=variant)
        return done[layout, variant]

    return run


def first_half(checkpoints: Path, copy: Path) -> Path:
    """A copy as it was after three of six steps."""
    shutil.copytree(checkpoints, copy, ignore=shutil.ignore_patterns("iter_0000006"))
    (copy / TRACKER).write_text("3")
    return copy


@pytest.fixture(scope="session")
def saved(whole, tmp_path_factory) -> Path:
    """PHD-CSWA-3-5-12 on TP 2, after three of six steps."""
    folder, _ = whole("TP2")
    return first_half(folder, tmp_path_factory.mktemp("saved") / "checkpoints")


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_in(folder: Path, rank: int = 0, world_size: int = 1) -> str:
    from phd.checkpoint.integrity import find_damage

    return find_damage(folder, rank, world_size) or ""


def refusal(folder: Path, step: int | None = None, pretrained: Path | None = None) -> str:
    """What pretrain_phd.py says to --load FOLDER --ckpt-step STEP --pretrained-checkpoint PRETRAINED at
    start-up.
    """
    from phd.checkpoint.choice import settle_checkpoint

    args = Namespace(
        load=str(folder),
        pretrained_checkpoint=pretrained and str(pretrained),
        ckpt_step=step,
        rank=0,
        world_size=1,
    )
    try:
        settle_checkpoint(args)
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A copy of the saved run that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "ckpt"))

"""Checkpoints that must not be loaded: damaged ones, and those that would run code."""

import pickle
import re
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.conftest import damage_in, flip, refusal, tear


class Malice:
    """A pickle that would create a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


DAMAGE = {
    "torn": ("__0_0.distcp", tear, r"__0_0\.distcp ends after \d+ of \d+ bytes"),
    "flipped-bit": ("__1_0.distcp", flip, r"__1_0\.distcp is corrupted near byte \d+"),
    "missing": ("__1_0.distcp", Path.unlink, r"__1_0\.distcp is missing"),
    "torn-metadata": (".metadata", tear, r"\.metadata cannot be read"),
    "no-metadata": (".metadata", Path.unlink, r"\.metadata is missing"),
    # what Megatron writes last
    "killed-at-the-last": ("metadata.json", Path.unlink, r"metadata\.json is missing"),
    "torn-at-the-last": ("metadata.json", lambda file: file.write_text(""), r"metadata\.json cannot be read"),
}


def test_whole_checkpoint_is_taken(world, copy):
    assert world.run(refusal, copy) == [""]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_named(world, saved, copy, damage):
    """By file; refused where there is no other, or where it was asked for. A flipped bit is found
    later, by all ranks together: see test_guard.py.
    """
    file, harm, message = DAMAGE[damage]
    harm(copy / "iter_0000003" / file)
    assert re.search(message, *world.run(damage_in, copy / "iter_0000003"))
    if damage == "flipped-bit":  # by the rank whose share it is
        answers = [world.run(damage_in, copy / "iter_0000003", rank, 3)[0] for rank in range(3)]
        assert sum(bool(answer) for answer in answers) == 1
        return
    assert re.search(f"{message}.*There is no whole checkpoint to go back to", *world.run(refusal, copy))
    aside = copy.rename(copy.with_name("aside"))  # the remedy of the message: to start afresh
    assert world.run(refusal, copy) == [""]
    aside.rename(copy)
    shutil.copytree(saved / "iter_0000003", copy / "iter_0000002")
    assert world.run(refusal, copy) == [""]
    assert re.search(
        f"{message}.*is iteration 2: continue from it with --ckpt-step 2", *world.run(refusal, copy, 3)
    )


def test_checkpoint_metadata_is_not_executed(world, copy, tmp_path):
    trace = tmp_path / "executed"
    (copy / "iter_0000003" / ".metadata").write_bytes(pickle.dumps(Malice(trace)))
    assert "refusing to run" in world.run(refusal, copy)[0]
    assert not trace.exists()

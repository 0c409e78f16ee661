"""Which checkpoint a start loads, and what it says where there is none."""

import re
import shutil

from phd.run.status import TRACKER
from tests.checkpoint.conftest import PHD, refusal, tear
from tests.training.test_arguments import refused_at_start


def test_an_iteration_that_was_never_saved(world, copy, tmp_path):
    """It was called damaged, also in an empty folder."""
    (answer,) = world.run(refusal, copy, 99)
    assert answer.startswith(f"there is no checkpoint of iteration 99 (--ckpt-step) in {copy}. ")
    assert answer.endswith("The newest whole one is iteration 3: continue from it with --ckpt-step 3")
    assert world.run(refusal, copy, 3) == [""]
    (answer,) = world.run(refusal, tmp_path / "nothing", 99)
    assert answer.endswith("/nothing: leave --ckpt-step out to start afresh")
    assert world.run(refusal, tmp_path / "nothing") == [""]


def test_the_first_weights_matter_no_more_when_the_run_has_its_own(world, saved, copy, tmp_path):
    """Nor do --ckpt-step and falling back, which mean the run's own checkpoints, look for them there."""
    first = tmp_path / "first"
    shutil.copytree(saved, first)
    (first / "iter_0000003").rename(first / "iter_0000005")
    (first / "latest_checkpointed_iteration.txt").write_text("5")
    shutil.copytree(saved / "iter_0000003", copy / "iter_0000002")
    assert world.run(refusal, copy, 2, first) == [""]
    tear(copy / "iter_0000003" / "__0_0.distcp")
    assert world.run(refusal, copy, None, first) == [""]
    tear(first / "iter_0000005" / "__0_0.distcp")
    assert world.run(refusal, copy, None, first) == [""]
    shutil.copytree(saved / "iter_0000003", first / "iter_0000004")
    advice = f"is iteration 4: write 4 into {first}/latest_checkpointed_iteration.txt"
    assert advice in world.run(refusal, tmp_path / "nothing", None, first)[0]


def test_a_checkpoint_of_another_format_is_not_called_damaged(world, tmp_path):
    """It is whole, and to be converted; so is what Megatron calls a release."""
    (tmp_path / "iter_0000003" / "mp_rank_00").mkdir(parents=True)
    tracker = tmp_path / TRACKER
    for text, message in {"3": "is not a checkpoint in torch_dist format", "release": "a release"}.items():
        tracker.write_text(text)
        (answer,) = world.run(refusal, tmp_path)
        assert message in answer and f"--load {tmp_path}, --ckpt-format torch" in answer
        assert "damaged" not in answer and "remove" not in answer


def test_arguments_of_the_checkpoint_are_refused_as_those_of_the_command_line(
    world, base_flags, saved, tmp_path
):
    """Megatron's default dropout, which our attention does not do."""
    folder = tmp_path / "vanilla"
    once = ["--train-iters", "1", "--save-interval", "1", "--attention-dropout", "0.1"]
    world.pretrain([*base_flags, *once, "--save", str(folder)])
    ours = ["--phd-copies", "2", "--attention-dropout", "0", "--override-phd-variant"]
    flags = [*base_flags, *ours, "--use-checkpoint-args"]
    for source in ("--load", "--pretrained-checkpoint"):
        (answer,) = world.run(refused_at_start, [*flags, source, str(folder)])
        assert "--attention-dropout above 0 (pass --attention-dropout 0)" in answer
    flags = [*base_flags, *PHD, "--use-checkpoint-args", "--load", str(saved)]
    at = flags.index("--seq-length")
    assert world.run(refused_at_start, [*flags[:at], *flags[at + 2 :]]) == [""]


def test_arguments_come_from_a_checkpoint_whose_tracker_a_kill_left_empty(world, base_flags, copy):
    """Megatron would end there, without an error."""
    (copy / TRACKER).write_text("")
    at = base_flags.index("--seq-length")
    flags = [*base_flags[:at], *base_flags[at + 2 :], *PHD, "--use-checkpoint-args", "--load", str(copy)]
    assert world.run(refused_at_start, flags) == [""]


def test_unreadable_tracker_is_refused(world, copy):
    tracker = copy / TRACKER
    tracker.write_text("three")
    assert re.search("should hold an iteration, found 'three'.*--ckpt-step 3", *world.run(refusal, copy))
    tracker.write_text("")  # as a kill leaves it
    assert world.run(refusal, copy) == [""]

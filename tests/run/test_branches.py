"""The plan of a family of branches, and the trunks that have none."""

import json
from pathlib import Path
from typing import Any

import pytest

from phd.run.branches import LAUNCHER, Trunk, plan
from phd.run.record import BRANCH_FILE, METRICS_FILE, RUN_FILE
from phd.run.status import RunStatus, newest_checkpoint

ARGUMENTS = {
    **{"num_layers": 4, "train_iters": 100, "train_samples": None, "wandb_project": ""},
    **{"lr_decay_style": "constant", "lr_decay_iters": None, "lr_wsd_decay_iters": None},
    **{"lr_warmup_iters": 10, "lr_warmup_fraction": None},
}
COMMAND = (
    "pretrain_phd.py --num-layers 4 --lr 1e-3 --adam-beta2=0.95 --phd-copies 1 --seed 3 --run-dir 'a run' "
    "--min-lr=1e-5 --train-iters 100 --swiglu --exit-interval 50 --eval-iters 0 --lr-decay-style constant"
)


def make_trunk(folder: Path, at: int = 50, **arguments: Any) -> Path:
    """A run with two checkpoints, 20 and ``at``."""
    saves = folder / "checkpoints"
    for iteration in (20, at):
        saved = saves / f"iter_{iteration:07d}"
        saved.mkdir(parents=True)
        (saved / ".metadata").write_text("metadata")
        (saved / "__0_0.distcp").write_text(f"weights of {iteration}")
    RunStatus(folder, saves).started(100, COMMAND)
    (saves / "latest_checkpointed_iteration.txt").write_text(str(at))
    about = {"arguments": ARGUMENTS | arguments, "command": COMMAND, "world_size": 2}
    (folder / RUN_FILE).write_text(json.dumps(about))
    line = {"kind": "train", "iteration": at, "tokens": 400, "flops": 4e6, "lm loss": 2.0}
    (folder / METRICS_FILE).write_text(json.dumps(line) + "\n")
    return folder


@pytest.fixture
def trunk(tmp_path) -> Trunk:
    return Trunk.read(make_trunk(tmp_path / "vanilla-seed3"))


def test_the_newest_checkpoint_or_the_one_that_is_asked_for(trunk):
    assert (trunk.iteration, trunk.checkpoint.name, trunk.world_size) == (50, "iter_0000050", 2)
    assert Trunk.read(trunk.folder, 20).checkpoint.name == "iter_0000020"
    assert Trunk.read(trunk.folder, 20).digest() != trunk.digest() == Trunk.read(trunk.folder).digest()


def test_flags_are_those_of_the_trunk_but_for_the_branch(trunk, tmp_path):
    assert trunk.flags == ("--num-layers", "4", "--lr", "1e-3", "--adam-beta2=0.95", "--swiglu",
                           "--eval-iters", "0")  # fmt: skip
    (branch,) = plan(trunk, ["PHD-2"], [7], iterations=5, longest=15, output=tmp_path / "out")
    words = branch.flags()[len(trunk.flags) :]
    assert words[-2:] == ["--override-phd-variant", "--override-opt-param-scheduler"]
    assert dict(zip(words[0:-2:2], words[1:-2:2], strict=True)) == {
        **{"--run-dir": f"{tmp_path}/out/PHD-2-order7", "--variant": "PHD-2", "--seed": "7"},
        **{"--train-iters": "55", "--data-iters": "65", "--lr-warmup-iters": "10", "--min-lr": "0"},
        **{"--lr-decay-style": "WSD", "--lr-decay-iters": "55", "--lr-wsd-decay-style": "linear"},
        **{"--lr-wsd-decay-iters": "5"},
    }


def test_a_family_goes_order_by_order_and_names_nobody_twice(trunk, tmp_path):
    variants = ["vanilla", "PHD-CSWA-2-16-32", "vanilla"]
    branches = plan(trunk, variants, [2, 1, 2], iterations=5, longest=None, output=tmp_path)
    assert [branch.name for branch in branches] == [
        "vanilla-order2", "PHD-CSWA-2-16-32-order2", "vanilla-order1", "PHD-CSWA-2-16-32-order1"
    ]  # fmt: skip


def test_prepared_once_and_never_over_a_start(trunk, tmp_path):
    """The folder's own checkpoints win; what an interruption left is made again."""
    (branch,) = plan(trunk, ["vanilla"], [1], iterations=5, longest=None, output=tmp_path)
    saves = branch.folder / "checkpoints"
    (saves / ".iter_0000050.tmp").mkdir(parents=True)
    (saves / ".iter_0000050.tmp" / ".metadata").write_text("half")

    def prepare() -> str:
        more, exports = ["--lr", "2e-3"], {"PYTHON": "a python", "NPROC_PER_NODE": "2"}
        return branch.prepare(trunk.digest(), ["a/torchrun.sh", "b.py"], more, exports).read_text()

    text = prepare()
    assert newest_checkpoint(saves) == 50
    assert (saves / "iter_0000050" / "__0_0.distcp").read_text() == "weights of 50"
    assert [path.name for path in saves.glob(".*")] == []
    assert "export PYTHON=${PYTHON:-'a python'}\nexport NPROC_PER_NODE=${NPROC_PER_NODE:-2}\n" in text
    assert f"\ncd {Path.cwd()} || exit\nexec a/torchrun.sh b.py --num-layers 4 " in text
    assert text.endswith("--override-opt-param-scheduler --lr 2e-3\n")
    origin = json.loads((branch.folder / BRANCH_FILE).read_text())
    assert (origin["tokens"], origin["flops"], origin["longest"]) == (400, 4e6, 5)

    (saves / "iter_0000053").mkdir()
    (saves / "iter_0000050" / "__0_0.distcp").unlink()
    (saves / "latest_checkpointed_iteration.txt").unlink()  # as a kill leaves it, and a start mends it
    prepare()
    assert not (saves / "iter_0000050" / "__0_0.distcp").exists()
    assert newest_checkpoint(saves) == 0 and (branch.folder / LAUNCHER).exists()


def test_the_folder_of_another_branch_is_refused(trunk, tmp_path):
    def prepare(trunk: Trunk, iterations: int = 5, output: str = "out") -> None:
        (branch,) = plan(trunk, ["vanilla"], [3], iterations=iterations, longest=9, output=tmp_path / output)
        branch.prepare(trunk.digest(), ["command"], [], {})

    prepare(trunk)
    with pytest.raises(ValueError, match="is a branch with iterations 5, not 6: take another --output"):
        prepare(trunk, 6)
    other = Trunk.read(make_trunk(tmp_path / "other", at=60))
    with pytest.raises(ValueError, match="is a branch with checkpoint_sha256 "):
        prepare(other)
    make_trunk(tmp_path / "runs" / "vanilla-order3")
    with pytest.raises(ValueError, match="vanilla-order3 is a run and no branch"):
        prepare(trunk, output="runs")


@pytest.mark.parametrize(
    "arguments, refusal",
    [
        ({"lr_decay_style": "cosine"}, "has decayed before iteration 50 (--lr-decay-style cosine)"),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 51}, "decayed before iteration 50 (--lr-decay"),
        ({"lr_decay_style": "WSD", "lr_decay_iters": 60, "lr_wsd_decay_iters": 11}, "has decayed before"),
        ({"lr_warmup_iters": 51}, "still in its warm-up at iteration 50 (--lr-warmup-iters 51)"),
        ({"lr_warmup_iters": 0, "lr_warmup_fraction": 0.6}, "still in its warm-up at iteration 50"),
        ({"train_samples": 800}, "counts --train-samples"),
    ],
)
def test_a_trunk_is_at_a_constant_rate(arguments, refusal, tmp_path):
    with pytest.raises(ValueError) as error:
        Trunk.read(make_trunk(tmp_path / "trunk", **arguments))
    assert refusal in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, warmup",
    [
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 50}, 10),
        ({"lr_decay_style": "WSD", "lr_decay_iters": 60, "lr_wsd_decay_iters": 10}, 10),
        ({"lr_warmup_iters": 50}, 50),
        ({"lr_warmup_iters": 0, "lr_warmup_fraction": 0.5}, 50),
    ],
)
def test_a_rate_that_is_constant_just_so(arguments, warmup, tmp_path):
    assert Trunk.read(make_trunk(tmp_path / "trunk", **arguments)).warmup_iters == warmup


def test_the_rate_is_that_of_the_start_that_came_to_the_checkpoint(tmp_path):
    """Not of one that went on from it and let the rate decay."""
    folder = make_trunk(tmp_path / "trunk", lr_decay_style="cosine")
    about = json.loads((folder / RUN_FILE).read_text())
    about["starts"] = [
        {"iteration": 0, "differs": {"lr_decay_style": "constant"}}, {"iteration": 50, "differs": {}}
    ]  # fmt: skip
    (folder / RUN_FILE).write_text(json.dumps(about))
    assert Trunk.read(folder).arguments["lr_decay_style"] == "constant"


def test_what_is_no_trunk(tmp_path):
    with pytest.raises(ValueError, match="holds no phd_run.json with a command line: give the --run-dir"):
        Trunk.read(tmp_path)
    folder = make_trunk(tmp_path / "trunk")
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(ValueError, match="has no checkpoint to branch from: look into"):
        Trunk.read(folder)


@pytest.mark.parametrize(
    "more, refusal",
    [
        ({"iterations": 0}, "--iterations 0 trains nothing"),
        ({"longest": 4}, "--longest 4 is less than --iterations 5"),
        ({"orders": [1, 0]}, "--orders 0 is no --seed"),
        ({"variants": ["PHD"]}, "'PHD' names no variant"),
        ({"variants": ["3full-2sink"]}, "3full-2sink"),
    ],
)
def test_a_plan_is_checked(more, refusal, trunk, tmp_path):
    arguments = {"variants": ["vanilla"], "orders": [1], "iterations": 5, "longest": None} | more
    with pytest.raises(ValueError) as error:
        plan(trunk, output=tmp_path, **arguments)
    assert refusal in str(error.value) and "\n" not in str(error.value)

"""A copy embedding that a checkpoint lacks, for some or all copies, is added to its training."""

import shlex
from functools import cache
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from phd.run.status import TRACKER
from tests.trainings import losses

NONE = shlex.split("--phd-copies 2 --phd-window 5 --phd-chunk 12")
SCHEDULE = "--train-iters 6 --save-interval 1 --global-batch-size 4 --eval-iters 0"
TRAINED = 3  # iterations, before anything is added
FULLY = "--use-distributed-optimizer --dist-ckpt-optim-fully-reshardable"
PARALLEL_LOAD = "--pipeline-model-parallel-size 2 --ckpt-fully-parallel-load"
"""What a rank loads is put where it stands in the state dict, not into the tensors that are there."""
STILL = ["--phd-copy-embedding-warmup-iters", str(10**30)]
"""Added weights stay as they were loaded: a step of 2e-3 / 1e30 is less than half a unit in the last place
of every weight."""

LAYOUTS = {
    "fp32": ("", 1, ""),
    "bf16": ("--bf16", 1, ""),
    "DP2-distopt": (FULLY, 2, ""),
    "bf16-DP2-distopt": (f"--bf16 {FULLY}", 2, ""),
    "TP2": ("", 2, "--tensor-model-parallel-size 2"),
    "bf16-TP2-SP-distopt": (f"--bf16 {FULLY}", 2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    # a pipeline stage without added parameters has an empty group
    "bf16-PP2-DP2": ("--bf16", 4, PARALLEL_LOAD),
    "bf16-PP2-DP2-distopt": (f"--bf16 {FULLY}", 4, PARALLEL_LOAD),
}
"""Flags of the checkpoint, which one rank trains, and of what goes on; the ranks and flags of that alone."""
CASES = [
    *(("vector", layout) for layout in ("bf16", "DP2-distopt", "bf16-TP2-SP-distopt", "bf16-PP2-DP2")),
    *(("table", layout) for layout in ("fp32", "bf16-DP2-distopt", "TP2", "bf16-TP2-SP-distopt")),
    ("table", "bf16-PP2-DP2-distopt"),
]


@pytest.fixture(scope="module")
def flags(base_flags) -> list[str]:
    # the gradient norm is that of all parameters, the added ones included
    return [*base_flags, *NONE, *shlex.split(SCHEDULE), "--clip-grad", "0"]


@pytest.fixture(scope="module")
def trained(world, flags, tmp_path_factory):
    """Checkpoints without a copy embedding, each trained once."""
    folders: dict[str, Path] = {}

    def train(more: str) -> Path:
        if more not in folders:
            folders[more] = tmp_path_factory.mktemp("trained")
            exits = ["--exit-interval", str(TRAINED), "--save", str(folders[more])]
            world.pretrain([*flags, *more.split(), *exits])
        return folders[more]

    return train


def tensors(folder: Path, iteration: int) -> dict:
    """All of a checkpoint, by name."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from phd.checkpoint.read import CheckpointTensors, read_metadata

    found = CheckpointTensors(folder / f"iter_{iteration:07d}")
    found._tensors = {
        name: entry
        for name, entry in read_metadata(found.folder).state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    return {name: found.read(name) for name in found._tensors}


@pytest.fixture(scope="module")
def next_step(world, flags, trained, tmp_path_factory):
    """next_step(layout, variant): the loss, the checkpoint and the words of one more iteration."""

    @cache
    def run(layout: str, *variant: str) -> tuple[list[float], dict, str]:
        precision, ranks, more = LAYOUTS[layout]
        folder = tmp_path_factory.mktemp("next")
        on = [*flags, *precision.split(), *more.split(), "--load", str(trained(precision))]
        on += [*variant, "--override-phd-variant", "--exit-interval", str(TRAINED + 1)]
        said = world.pretrain([*on, "--save", str(folder), "--tensorboard-dir", str(folder / "logs")], ranks)
        return losses(folder / "logs")["lm loss"], tensors(folder, TRAINED + 1), said

    return run


@pytest.mark.parametrize(("embedding", "layout"), CASES)
def test_the_first_pass_is_the_checkpoint_s(layout, embedding, trained, next_step):
    """Bit for bit. Existing parameters make the same step from the same moments; added ones have their
    source's master weights, and moments of their first gradient alone.
    """
    import torch

    plain, old, _ = next_step(layout)
    grown, new, said = next_step(layout, "--phd-copy-embedding", embedding, *STILL)
    assert plain == grown and len(plain) == 1
    assert f"the {embedding} of copy 1 at iteration 3 joined the training; its learning rate rises" in said

    joined = {name for name in new if "copy_embedding" in name}
    assert new.keys() - joined == old.keys()
    state = {kind for name in joined if (kind := name.partition("copy_embedding")[0])}
    moments = {f"optimizer.state.{moment}." for moment in ("exp_avg", "exp_avg_sq")}
    assert moments <= state and len(state) == len(moments) + ("bf16" in layout or "distopt" in layout)
    added = next(name for name in joined if name.startswith("copy_embedding"))
    embedded = "embedding.word_embeddings.weight"
    for name, tensor in old.items():
        if embedding == "vector" or embedded not in name:  # it has no gradient of copy 1 any more
            assert torch.equal(tensor, new[name]), name
    first = tensors(trained(LAYOUTS[layout][0]), TRAINED)
    for kind in {"", *state} - moments:
        if embedding == "table":
            assert torch.equal(new[kind + added], first[kind + embedded])
        else:
            assert 0 < new[kind + added].abs().max() < 1e-30
    gradient, square = (new[f"optimizer.state.{moment}.{added}"] for moment in ("exp_avg", "exp_avg_sq"))
    assert gradient.abs().max() > 0
    torch.testing.assert_close((gradient / 0.1) ** 2, square / 0.001, rtol=1e-4, atol=0)


def grow(world, flags, folder: Path, save: Path, more: str, ranks: int = 1) -> str:
    """Go on from ``folder``, with a checkpoint of each iteration in ``save``."""
    on = [*flags, *more.split(), "--override-phd-variant", "--load", str(folder), "--save", str(save)]
    return world.pretrain([*on, "--tensorboard-dir", str(save / "logs")], ranks)


def added_at(folder: Path, iteration: int) -> list[int]:
    from phd.checkpoint.read import read_args

    return read_args(folder / f"iter_{iteration:07d}").phd_copy_births


@pytest.mark.parametrize(
    ("embedding", "precision", "ranks"), [("vector", "", 1), ("table", f"--bf16 {FULLY}", 2)]
)
def test_more_copies_start_as_those_that_are_there_in_turn(
    embedding, precision, ranks, world, flags, tmp_path
):
    """Two copies become four: copy 2 starts as the original, copy 3 as copy 1."""
    import torch

    kind = f"{precision} --phd-copy-embedding {embedding}"
    world.pretrain([*flags, *kind.split(), "--exit-interval", "3", "--save", str(tmp_path / "two")], ranks)
    assert added_at(tmp_path / "two", 3) == []
    more = f"{kind} {' '.join(STILL)} --phd-copies 4 --exit-interval 4"
    said = grow(world, flags, tmp_path / "two", tmp_path / "four", more, ranks)
    original = "zero" if embedding == "vector" else "the embedding"
    assert f"anew begins the {embedding} of copy 2 as {original}, copy 3 as that of copy 1\n" in said
    assert f"> the {embedding} of copy 2 at iteration 3, copy 3 at iteration 3 joined the training" in said
    assert added_at(tmp_path / "four", 4) == [0, 3, 3]
    two, four = tensors(tmp_path / "two", 3), tensors(tmp_path / "four", 4)
    name = {
        "vector": "copy_embedding.vectors.{}",
        "table": "copy_embedding.tables.{}.word_embeddings.weight",
    }[embedding]
    for prefix in ("", "optimizer.state.param.") if precision else ("",):
        first, second, third = (four[prefix + name.format(number)] for number in range(3))
        had = two[prefix + name.format(0)]
        assert not torch.equal(first, had) and torch.equal(third, had)
        if embedding == "table":
            assert torch.equal(second, two[f"{prefix}embedding.word_embeddings.weight"])
        else:
            assert 0 < second.abs().max() < 1e-30


def test_a_vanilla_checkpoint_grows(world, flags, tmp_path):
    """Into copies with tables: the first pass is that of copies without."""
    vanilla = [*flags, "--phd-copies", "1", "--exit-interval", "2", "--save", str(tmp_path / "one")]
    world.pretrain(vanilla)
    for name, more in {"none": "", "table": "--phd-copy-embedding table"}.items():
        grow(world, flags, tmp_path / "one", tmp_path / name, f"{more} --exit-interval 3")
    plain, grown = (losses(tmp_path / name / "logs")["lm loss"] for name in ("none", "table"))
    assert plain == grown
    assert added_at(tmp_path / "table", 3) == [2]


@pytest.mark.parametrize(("precision", "ranks"), [("", 1), (f"--bf16 {FULLY}", 2), ("--bf16", 1)])
def test_a_resume_after_growth_equals_a_training_never_stopped(
    precision, ranks, world, flags, trained, tmp_path
):
    """Also where embeddings were added twice: copy 1's vector at iteration 3, copy 2's at iteration 4."""
    import torch

    short = f"{precision} --phd-copy-embedding vector --phd-copy-embedding-warmup-iters 2"
    once = tmp_path / "once"
    grow(world, flags, trained(precision), once, f"{short} --exit-interval 4", ranks)
    assert added_at(once, 4) == [3]
    twice = f"{short} --phd-copies 3"
    grow(world, flags, once, tmp_path / "straight", twice, ranks)
    stopped = ignore_patterns("iter_0000006")
    copytree(tmp_path / "straight", tmp_path / "stopped", ignore=stopped)
    (tmp_path / "stopped" / TRACKER).write_text("5")
    said = grow(world, flags, tmp_path / "stopped", tmp_path / "resumed", twice, ranks)
    assert "> the vector of copy 1 at iteration 3, copy 2 at iteration 4 joined the training" in said
    assert "anew begins" not in said
    assert added_at(tmp_path / "resumed", 6) == [3, 4]
    straight, resumed = (tensors(tmp_path / name, 6) for name in ("straight", "resumed"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_the_first_step_is_warmed_up(world, flags, trained, tmp_path):
    """The learning rate 2e-3 over 100 iterations: Adam's first step is it, whatever the gradient."""
    more = "--phd-copy-embedding vector --exit-interval 4"
    grow(world, flags, trained(""), tmp_path, more)
    step = tensors(tmp_path, 4)["copy_embedding.vectors.0"].abs()
    assert step.max().item() == pytest.approx(2e-5, rel=1e-4)  # less by eps = 1e-8 over the gradient
    assert step.median().item() == pytest.approx(2e-5, rel=1e-2)


def test_weights_alone_leave_no_parameter_added(world, flags, trained, tmp_path):
    first = {}
    for name, more in {"none": "", "table": "--phd-copy-embedding table"}.items():
        said = world.pretrain([
            *flags, *shlex.split(f"--bf16 {more} --exit-interval 1 --override-phd-variant"),
            *("--pretrained-checkpoint", str(trained("--bf16")), "--save", str(tmp_path / name)),
            *("--tensorboard-dir", str(tmp_path / name / "logs")),
        ])  # fmt: skip
        first[name] = losses(tmp_path / name / "logs")["lm loss"]
    assert first["none"] == first["table"]
    assert "anew begins the table of copy 1 as the embedding" in said and "joined the training" not in said
    assert added_at(tmp_path / "table", 1) == []
    start, grown = tensors(trained("--bf16"), TRAINED), tensors(tmp_path / "table", 1)
    weights = start["embedding.word_embeddings.weight"].float()
    step = grown["optimizer.state.fp32_param.copy_embedding.tables.0.word_embeddings.weight"] - weights
    # the learning rate, and what weight decay adds
    assert 1.9e-3 < step.abs().max() < 2e-3 * (1 + 0.01 * weights.abs().max()) * 1.0001


def resolved(flags: list[str], folder: Path, **other: object) -> str:
    """The message where the run falls back to ``folder`` only after start-up."""
    import sys

    from phd.checkpoint.growth import resolve_additions
    from phd.training.arguments import parse_and_validate_args

    sys.argv = ["pretrain_phd.py", *flags]
    args = parse_and_validate_args().args
    args.load = str(folder)
    vars(args).update(other)
    try:
        resolve_additions(args)
    except ValueError as error:
        return str(error)
    return str(args.phd_copy_births)


def test_an_older_checkpoint_in_place_of_a_damaged_one_grows_on_purpose_alone(world, flags, trained):
    more = [*flags, "--phd-copy-embedding", "vector"]
    (said,) = world.run(resolved, more, trained(""))
    assert said.endswith("has no vector for copies 1: pass --override-phd-variant to start them anew")
    (said,) = world.run(resolved, [*more, "--override-phd-variant"], trained(""))
    assert said == "[3]"

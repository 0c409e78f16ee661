"""What is looked at in validation alone: the loss of the original copy, named sets, samples."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from phd.run.record import METRICS_FILE, read_lines
from tests.trainings import VARIANTS, write_documents

SCHEDULE = shlex.split("--train-iters 4 --eval-interval 2 --eval-iters 2 --global-batch-size 4")
PHD = VARIANTS["PHD-CSWA-3-5-12"]


def lines(run: Path, kind: str) -> list[dict]:
    return [line for line in read_lines(run / METRICS_FILE) if line["kind"] == kind]


@pytest.fixture(scope="module")
def untrained_flags(base_flags, start_flags) -> list[str]:
    return [*base_flags, *start_flags, *SCHEDULE, "--train-iters", "2", "--lr", "0"]


@pytest.fixture(scope="module")
def vanilla_validation(world, untrained_flags, tmp_path_factory) -> dict:
    """The line of the vanilla model's validation before any training step has changed it."""
    run = tmp_path_factory.mktemp("vanilla")
    world.pretrain([*untrained_flags, "--run-dir", str(run)])
    (line,) = lines(run, "validation")
    return line


@pytest.mark.parametrize(
    ("ranks", "layout"), [(1, ""), (2, "--tensor-model-parallel-size 2"), (2, "--context-parallel-size 2")]
)
def test_the_original_copy_predicts_what_the_vanilla_model_would(
    world, untrained_flags, vanilla_validation, ranks, layout, tmp_path
):
    """Before any training step has told them apart: PHD's originals are the vanilla model's tokens."""
    world.pretrain([*untrained_flags, *PHD, *layout.split(), "--run-dir", str(tmp_path)], ranks)
    (phd,) = lines(tmp_path, "validation")
    original = phd["lm loss original validation"]
    assert original == pytest.approx(vanilla_validation["lm loss validation"], rel=1e-5)
    assert original != pytest.approx(phd["lm loss validation"], rel=1e-4)
    assert "lm loss original validation" not in vanilla_validation


def test_pruning_does_not_touch_validation(world, base_flags, start_flags, tmp_path):
    """The last copy's loss of the whole last layer is that of the pruned one in training."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    flags = [*base_flags, *start_flags, *PHD, *SCHEDULE]
    world.pretrain([*flags, "--run-dir", str(run)])
    world.pretrain([*flags, "--run-dir", str(whole), "--no-phd-prune-last-layer"])
    for kind in ("train", "validation"):
        for one, other in zip(lines(run, kind), lines(whole, kind), strict=True):
            loss = "lm loss validation" if kind == "validation" else "lm loss"
            assert one[loss] == pytest.approx(other[loss], rel=1e-5)


def write_set(prefix: Path, text: bytes) -> str:
    write_documents(prefix, [np.frombuffer(text, dtype=np.uint8)])
    return str(prefix)


@pytest.mark.parametrize("layout", ["", "--tensor-model-parallel-size 2", "--pipeline-model-parallel-size 2"])
def test_named_validation_sets(world, base_flags, layout, tmp_path):
    """Each gets its loss by its name, the original copy's too; equal texts get equal losses. Whole sets come
    one sample at a time, training batches two.
    """
    at = base_flags.index("--data-path")
    train, flags = base_flags[at + 1], [*base_flags[:at], *base_flags[at + 2 :]]
    at = flags.index("--split")
    flags = [*flags[:at], *flags[at + 2 :]]
    prose, code = b"It was the best of times. " * 10, b"def f(x): return x + 1\n" * 10
    paths = [write_set(tmp_path / name, text) for name, text in (("a", prose), ("b", code), ("c", prose))]
    data = ["--train-data-path", train, "--valid-data-path", *paths]
    names = [
        "--multiple-validation-sets",
        "--full-validation",
        "--validation-set-names",
        "wiki",
        "code",
        "wiki2",
    ]
    names += shlex.split("--eval-micro-batch-size 1 --eval-global-batch-size 1")
    run = tmp_path / "run"
    flags += [*data, *names, *PHD, *SCHEDULE, *layout.split(), "--run-dir", str(run)]
    world.pretrain(flags, ranks=2 if layout else 1)
    assert [line["iteration"] for line in lines(run, "validation")] == [2, 4]
    for line in lines(run, "validation"):
        for key in ("lm loss validation", "lm loss original validation"):
            assert line[f"{key}-wiki"] == line[f"{key}-wiki2"] != line[f"{key}-code"]


def test_validation_has_a_micro_batch_size_of_its_own(world, base_flags, start_flags, tmp_path):
    """The other tensor-parallel rank expects what the first one reads; where documents start, too."""
    losses = []
    for size in ("1", "2"):
        run = tmp_path / size
        flags = [*base_flags, *start_flags, *PHD, *SCHEDULE, "--eval-micro-batch-size", size]
        flags += ["--tensor-model-parallel-size", "2", "--reset-attention-mask", "--run-dir", str(run)]
        world.pretrain(flags, ranks=2)
        losses.append([line["lm loss validation"] for line in lines(run, "validation")])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "layout"),
    [("vanilla", ""), ("PHD-CSWA-3-5-12", "--tensor-model-parallel-size 2 --sequence-parallel")],
)
def test_samples(world, base_flags, start_flags, variant, layout, tmp_path):
    """A text for each prompt at every validation, and training goes on as without them."""
    run, without = tmp_path / "run", tmp_path / "without"
    ranks = 2 if layout else 1
    flags = [*base_flags, *start_flags, *VARIANTS[variant], *SCHEDULE, *layout.split()]
    world.pretrain([*flags, "--run-dir", str(without)], ranks)
    prompts = ["--sample-prompts", "100 101", "105", "--sample-tokens", "5"]
    world.pretrain([*flags, *prompts, "--run-dir", str(run)], ranks)
    losses = [[line["lm loss"] for line in lines(folder, "train")] for folder in (run, without)]
    assert losses[0] == losses[1]
    rows = lines(run, "samples")
    assert [row["iteration"] for row in rows] == [2, 4]
    assert [sample["prompt"] for sample in rows[0]["samples"]] == ["100 101", "105"]
    assert len(rows[0]["samples"][0]["text"].split()) == 5


def refused_samples(flags: str) -> str:
    from phd.training.samples import refuse_samples
    from tests.training.test_arguments import FLAGS, parse

    try:
        refuse_samples(parse([*FLAGS, "--sample-prompts", "100", *flags.split()]))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "flags",
    [
        "--pipeline-model-parallel-size 2",
        "--context-parallel-size 2",
        "--cuda-graph-impl local",
        "--tp-comm-overlap",
    ],
)
def test_samples_are_refused(world, flags):
    """Over a pipeline or a split sequence; where batches have one size."""
    (answer,) = world.run(refused_samples, flags)
    assert answer.startswith(f"--sample-prompts does not run with {flags}: ")


def test_graphs_of_iterations_let_samples_be(world):
    assert world.run(refused_samples, "--cuda-graph-impl full_iteration") == [""]

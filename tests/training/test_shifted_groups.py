"""--s2-groups: shifted groups in training alone, in every layout; the run's name and costs."""

import json
import shlex
from pathlib import Path

import pytest

from phd.run.record import METRICS_FILE, RUN_FILE, read_run_info
from tests.trainings import VARIANTS as COPIES

GROUPS = "--s2-groups 4"
EVERYTHING = " ".join([*COPIES["PHD-CSWA-3-5-12"], "--dataloader-inter-document-masking", GROUPS])


@pytest.fixture(scope="module")
def train(world, base_flags, packed_data):
    """train(folder, flags, ranks) -> the lines of the record."""

    def run(folder: Path, more: str, ranks: int = 1) -> list[dict]:
        # weights large enough that a key shows
        flags = [*base_flags, *packed_data, "--init-method-std", "0.1", "--run-dir", str(folder)]
        world.pretrain([*flags, *shlex.split(more)], ranks)
        return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]

    return run


def values(lines: list[dict], kind: str, name: str) -> list[float]:
    return [line[name] for line in lines if line["kind"] == kind]


def test_layouts(train, tmp_path):
    """With copies and packed documents: halves of all heads under TP, kept keys under CP."""
    parallel = "--tensor-model-parallel-size 2 --context-parallel-size 2 --train-iters 2"
    one = train(tmp_path / "one", f"{EVERYTHING} --train-iters 2")
    four = train(tmp_path / "four", f"{EVERYTHING} {parallel}", ranks=4)
    for name in ("lm loss", "grad-norm"):
        found = values(four, "train", name)
        assert len(found) == 2 and found == pytest.approx(values(one, "train", name), rel=1e-5)


def test_in_validation_layers_are_full(train, tmp_path):
    """Bit for bit, of the same weights; and neither name nor costs of the two runs are one."""
    from phd.compare.arguments import refuse_differences
    from phd.compare.logs import read_run

    still = "--lr 0 --eval-interval 2 --train-iters 2"
    full, groups = (
        train(tmp_path / str(number), f"{still} {more}") for number, more in enumerate(("", GROUPS))
    )
    assert values(full, "validation", "lm loss validation") == values(
        groups, "validation", "lm loss validation"
    )
    pairs = zip(values(full, "train", "lm loss"), values(groups, "train", "lm loss"), strict=True)
    assert all(abs(a - b) > 1e-3 for a, b in pairs)
    infos = [read_run_info(tmp_path / name / RUN_FILE) for name in "01"]
    assert [info.name for info in infos] == ["vanilla", "vanilla+s2"]
    assert infos[1].flops_per_token < infos[0].flops_per_token
    runs = [read_run(tmp_path / name / RUN_FILE) for name in "01"]
    with pytest.raises(ValueError, match="was trained with --s2-groups 0 and .* with 4; if that is what"):
        refuse_differences(runs)

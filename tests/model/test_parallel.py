"""Every parallel layout gives the single process's losses and gradient norms: for K = 1, and for K = 3 on
full and sparse layers.
"""

import json
from pathlib import Path

import pytest

from phd.compare.logs import RUN_FILE
from tests.model.conftest import MIXTURE_OF_EXPERTS, PATTERN, losses
from tests.model.conftest import VARIANTS as COPIES

VARIANTS = {"vanilla": [], "PHD-longgen": [*COPIES["PHD-CSWA-3-5-12"], *PATTERN.split()]}

LAYOUTS = {
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "TP2-SP": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "PP2-interleaved": (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"),
    "PP2-loss-alone": (
        2,
        "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Etttt|L --no-phd-prune-last-layer",
    ),
    "TP2-PP2": (4, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"),
    "DP2": (2, ""),
    "DP2-distopt": (2, "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"),
    "TP2-SP-DP2-distopt": (
        4,
        "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer",
    ),
    "recompute-full": (
        1,
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    ),
    "recompute-selective": (1, "--recompute-granularity selective"),
}


@pytest.fixture(scope="module")
def serial(world, base_flags, start_flags, tmp_path_factory) -> dict[str, dict[str, list[float]]]:
    """The single process's numbers of every variant."""
    results = {}
    for variant, flags in VARIANTS.items():
        folder = tmp_path_factory.mktemp(variant)
        world.pretrain([*base_flags, *start_flags, *flags, "--tensorboard-dir", str(folder)])
        results[variant] = losses(folder)
    return results


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_single_process(
    layout, variant, world, base_flags, start_flags, serial, tmp_path: Path
):
    ranks, flags = LAYOUTS[layout]
    world.pretrain(
        [*base_flags, *start_flags, *VARIANTS[variant], *flags.split(), "--tensorboard-dir", str(tmp_path)],
        ranks,
    )
    parallel = losses(tmp_path)
    assert len(serial[variant]["lm loss"]) == 4
    assert serial[variant]["lm loss"][-1] < serial[variant]["lm loss"][0]
    for tag in ("lm loss", "grad-norm"):
        assert parallel[tag] == pytest.approx(serial[variant][tag], rel=1e-5)


def test_variants_differ(serial):
    """A layout test proves nothing if K has no effect."""
    vanilla, phd = (serial[variant]["lm loss"] for variant in VARIANTS)
    assert phd != pytest.approx(vanilla, rel=1e-4)


EXPERT_LAYOUTS = {
    "EP2": "--expert-model-parallel-size 2 --moe-token-dispatcher-type alltoall",
    "EP2-allgather": "--expert-model-parallel-size 2 --moe-token-dispatcher-type allgather",
    "TP2-SP": "--tensor-model-parallel-size 2 --sequence-parallel --moe-token-dispatcher-type alltoall",
    "TP2-SP-whole-experts": (
        "--tensor-model-parallel-size 2 --sequence-parallel --expert-tensor-parallel-size 1 "
        "--moe-token-dispatcher-type alltoall"
    ),
    "PP2": "--pipeline-model-parallel-size 2 --moe-token-dispatcher-type alltoall",
}


def parameters(folder: Path) -> int:
    return json.loads((folder / RUN_FILE).read_text())["parameters"]


@pytest.fixture(scope="module")
def experts(world, base_flags, tmp_path_factory) -> tuple[list[str], dict, int]:
    """Flags of a mixture of experts with copies and common initial weights; the single process's numbers, and
    how many parameters it has.
    """
    folder, board = (tmp_path_factory.mktemp(name) for name in ("experts", "experts-serial"))
    flags = [*base_flags, *COPIES["PHD-CSWA-3-5-12"], *MIXTURE_OF_EXPERTS]
    world.pretrain([*flags, "--train-iters", "1", "--save", str(folder), "--save-interval", "1"])
    flags += ["--load", str(folder), "--finetune"]
    world.pretrain([*flags, "--tensorboard-dir", str(board)])
    return flags, losses(board), parameters(board)


@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_mixture_of_experts_equals_single_process(layout, world, experts, tmp_path: Path):
    """The router sees every copy as a token of its own."""
    flags, serial, count = experts
    world.pretrain([*flags, *EXPERT_LAYOUTS[layout].split(), "--tensorboard-dir", str(tmp_path)], 2)
    parallel = losses(tmp_path)
    assert len(serial["lm loss"]) == 4
    for tag in ("lm loss", "grad-norm"):
        assert parallel[tag] == pytest.approx(serial[tag], rel=1e-5)
    assert parameters(tmp_path) == count

"""Every parallel layout gives the single process's losses and gradient norms: with all that the project adds
(K = 3, full and sparse layers, packed documents), and for K = 1 where the shim for a CPU is in the way.
"""

from pathlib import Path

import pytest

from phd.run.record import RUN_FILE, read_run_info
from tests.trainings import MIXTURE_OF_EXPERTS, PATTERN, losses
from tests.trainings import VARIANTS as COPIES

EVERYTHING = [*COPIES["PHD-CSWA-3-5-12"], *PATTERN.split(), "--dataloader-inter-document-masking"]
VARIANTS = {"vanilla": [], "everything": EVERYTHING}

LAYOUTS = {
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "TP2-SP": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "PP2-interleaved": (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"),
    "PP2-loss-alone": (
        2,
        "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Etttt|L --no-phd-prune-last-layer",
    ),
    "PP4": (4, "--pipeline-model-parallel-size 4"),  # stages without tokens or loss, but with documents
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
CASES = [
    *(("vanilla", layout) for layout in ("TP2-SP", "PP2", "DP2-distopt")),
    *(("everything", layout) for layout in LAYOUTS),
]


@pytest.fixture(scope="module")
def flags(base_flags, packed_data, start_flags) -> list[str]:
    return [*base_flags, *packed_data, *start_flags]  # the last data path counts


@pytest.fixture(scope="module")
def serial(world, flags, tmp_path_factory) -> dict[str, dict[str, list[float]]]:
    """The single process's numbers of every variant."""
    results = {}
    for variant, more in VARIANTS.items():
        folder = tmp_path_factory.mktemp(variant)
        world.pretrain([*flags, *more, "--tensorboard-dir", str(folder)])
        results[variant] = losses(folder)
    return results


@pytest.mark.parametrize(("variant", "layout"), CASES)
def test_layout_equals_single_process(variant, layout, world, flags, serial, tmp_path: Path):
    ranks, more = LAYOUTS[layout]
    world.pretrain([*flags, *VARIANTS[variant], *more.split(), "--tensorboard-dir", str(tmp_path)], ranks)
    parallel = losses(tmp_path)
    assert len(serial[variant]["lm loss"]) == 4
    assert serial[variant]["lm loss"][-1] < serial[variant]["lm loss"][0]
    for tag in ("lm loss", "grad-norm"):
        assert parallel[tag] == pytest.approx(serial[variant][tag], rel=1e-5)


def test_variants_differ(serial):
    """A layout test proves nothing if what the project adds has no effect; each alone has one, as
    test_context_parallel.py shows.
    """
    vanilla, everything = (serial[variant]["lm loss"] for variant in VARIANTS)
    assert everything != pytest.approx(vanilla, rel=1e-4)


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
    return read_run_info(folder / RUN_FILE).parameters


@pytest.fixture(scope="module")
def experts(world, base_flags, tmp_path_factory) -> tuple[list[str], dict, int]:
    """Flags of a mixture of experts with copies and common initial weights; the single process's numbers, and
    how many parameters it has.
    """
    folder, board = (tmp_path_factory.mktemp(name) for name in ("experts", "experts-serial"))
    flags = [*base_flags, *COPIES["PHD-CSWA-3-5-12"], *MIXTURE_OF_EXPERTS]
    world.pretrain([*flags, "--train-iters", "1", "--save", str(folder), "--save-interval", "1"])
    flags += ["--load", str(folder), "--finetune", "--train-iters", "2"]
    world.pretrain([*flags, "--tensorboard-dir", str(board)])
    return flags, losses(board), parameters(board)


@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_mixture_of_experts_equals_single_process(layout, world, experts, tmp_path: Path):
    """The router sees every copy as a token of its own."""
    flags, serial, count = experts
    world.pretrain([*flags, *EXPERT_LAYOUTS[layout].split(), "--tensorboard-dir", str(tmp_path)], 2)
    parallel = losses(tmp_path)
    assert len(serial["lm loss"]) == 2
    for tag in ("lm loss", "grad-norm"):
        assert parallel[tag] == pytest.approx(serial[tag], rel=1e-5)
    assert parameters(tmp_path) == count

"""Every parallel layout gives the single process's losses and gradient norms, for K = 1 and K = 3."""

from pathlib import Path

import pytest

from tests.model.conftest import VARIANTS, losses

LAYOUTS = {
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "TP2-SP": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "PP2-interleaved": (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"),
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
def start(world, base_flags, tmp_path_factory) -> list[str]:
    """Flags that load common initial weights: with pipeline stages Megatron seeds each stage differently."""
    folder = tmp_path_factory.mktemp("start")
    world.pretrain([*base_flags, "--train-iters", "1", "--save", str(folder), "--save-interval", "1"])
    return ["--load", str(folder), "--finetune", "--override-phd-variant"]


@pytest.fixture(scope="module")
def serial(world, base_flags, start, tmp_path_factory) -> dict[str, dict[str, list[float]]]:
    """The single process's numbers of every variant."""
    results = {}
    for variant, flags in VARIANTS.items():
        folder = tmp_path_factory.mktemp(variant)
        world.pretrain([*base_flags, *start, *flags, "--tensorboard-dir", str(folder)])
        results[variant] = losses(folder)
    return results


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_single_process(layout, variant, world, base_flags, start, serial, tmp_path: Path):
    ranks, flags = LAYOUTS[layout]
    world.pretrain(
        [*base_flags, *start, *VARIANTS[variant], *flags.split(), "--tensorboard-dir", str(tmp_path)], ranks
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

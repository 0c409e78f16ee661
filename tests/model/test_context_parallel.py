"""Ranks that share the sequence, and packed documents: the losses and gradient norms of one process."""

import itertools
import shlex
from functools import cache
from pathlib import Path

import pytest

from tests.model.conftest import PATTERN, losses

VARIANTS = {
    "vanilla": "",
    "PHD-CSWA-2-4-5": "--phd-copies 2 --phd-window 4 --phd-chunk 5",  # chunks that divide the slices
    "PHD-CSWA-3-5-12": "--phd-copies 3 --phd-window 5 --phd-chunk 12",  # chunks that do not
    "naive-2": "--phd-copies 2 --phd-naive",
    "longgen": PATTERN,  # windows that reach over slices, far blocks on other ranks
    "PHD-longgen": f"--phd-copies 3 --phd-window 5 --phd-chunk 12 {PATTERN}",
}
LAYOUTS = {
    "CP2": (2, "--context-parallel-size 2"),
    "CP2-all-gather": (2, "--context-parallel-size 2 --cp-comm-type all_gather"),
    "CP2-a2a": (2, "--context-parallel-size 2 --cp-comm-type a2a"),
    "CP4": (4, "--context-parallel-size 4"),
    "CP2-TP2-SP": (4, "--context-parallel-size 2 --tensor-model-parallel-size 2 --sequence-parallel"),
    "CP2-PP2": (4, "--context-parallel-size 2 --pipeline-model-parallel-size 2"),
    "CP2-DP2-distopt": (4, "--context-parallel-size 2 --use-distributed-optimizer --overlap-grad-reduce"),
    "CP2-recompute": (
        2,
        "--context-parallel-size 2 --recompute-granularity full --recompute-method uniform "
        "--recompute-num-layers 1",
    ),
    "PP4": (4, "--pipeline-model-parallel-size 4"),
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "recompute-selective": (1, "--recompute-granularity selective"),
}
DOCUMENTS = {"one-document": "", "packed": "--dataloader-inter-document-masking"}
# layout, documents, variants: each way to cut and to communicate, with what it may get wrong
CASES = [
    ("CP2", "one-document", ("vanilla", "PHD-CSWA-2-4-5", "PHD-CSWA-3-5-12", "longgen")),
    ("CP2", "packed", ("PHD-CSWA-3-5-12", "naive-2", "PHD-longgen")),
    ("CP4", "one-document", ("PHD-longgen",)),
    ("CP4", "packed", ("PHD-CSWA-3-5-12", "longgen")),
    ("CP2-all-gather", "packed", ("vanilla", "PHD-longgen")),
    ("CP2-a2a", "one-document", ("PHD-CSWA-3-5-12",)),
    ("CP2-a2a", "packed", ("naive-2", "PHD-longgen")),
    ("CP2-TP2-SP", "packed", ("PHD-CSWA-3-5-12",)),
    ("CP2-PP2", "packed", ("PHD-longgen",)),
    ("CP2-DP2-distopt", "one-document", ("PHD-CSWA-3-5-12",)),
    ("CP2-recompute", "packed", ("PHD-longgen",)),
    ("PP4", "packed", ("vanilla", "PHD-CSWA-3-5-12")),
    ("TP2", "packed", ("longgen",)),
    ("recompute-selective", "packed", ("PHD-longgen",)),
]


@pytest.fixture(scope="module")
def flags(base_flags, packed_data) -> list[str]:
    return [*base_flags, *packed_data]  # the last data path counts


@pytest.fixture(scope="module")
def serial(world, flags, start_flags, tmp_path_factory):
    """serial(variant, documents): the numbers of one process."""

    @cache
    def run(variant: str, documents: str) -> dict:
        folder = tmp_path_factory.mktemp(f"{variant}-{documents}")
        more = f"{VARIANTS[variant]} {DOCUMENTS[documents]} --tensorboard-dir {folder}"
        world.pretrain([*flags, *start_flags, *shlex.split(more)])
        return losses(folder)

    return run


def close(results: dict, expected: dict) -> None:
    for tag in ("lm loss", "grad-norm"):
        assert len(results[tag]) == 4
        assert results[tag] == pytest.approx(expected[tag], rel=1e-5)


@pytest.mark.parametrize(
    ("layout", "documents", "variant"),
    [(layout, documents, variant) for layout, documents, variants in CASES for variant in variants],
)
def test_layout_equals_one_process(
    layout, documents, variant, world, flags, start_flags, serial, tmp_path: Path
):
    ranks, layout_flags = LAYOUTS[layout]
    more = f"{VARIANTS[variant]} {DOCUMENTS[documents]} {layout_flags} --tensorboard-dir {tmp_path}"
    world.pretrain([*flags, *start_flags, *shlex.split(more)], ranks)
    close(losses(tmp_path), serial(variant, documents))


@pytest.mark.parametrize("variant", ["vanilla", "PHD-CSWA-3-5-12", "longgen"])
def test_documents_change_the_loss(variant, serial):
    packed, one = (serial(variant, documents)["lm loss"] for documents in ("packed", "one-document"))
    assert packed != pytest.approx(one, rel=1e-4)


def test_variants_differ(serial):
    """A layout test proves nothing if copies or patterns have no effect."""
    results = [serial(variant, "packed")["lm loss"] for variant in VARIANTS if variant != "PHD-CSWA-2-4-5"]
    for first, second in itertools.combinations(results, 2):
        assert first != pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize(
    ("positions", "variant"), [("", "PHD-CSWA-3-5-12"), ("--reset-position-ids", "vanilla")]
)
def test_end_of_document_tokens_say_the_same(
    positions, variant, world, flags, start_flags, serial, tmp_path: Path
):
    """--reset-attention-mask finds the documents by their last token, the data loader by their lengths."""
    more = f"{VARIANTS[variant]} --reset-attention-mask {positions} --tensorboard-dir {tmp_path}"
    world.pretrain([*flags, *start_flags, *shlex.split(more)])
    close(losses(tmp_path), serial(variant, "packed"))


def test_unpruned_last_layer_gives_the_same(world, flags, start_flags, serial, tmp_path: Path):
    more = f"{VARIANTS['PHD-CSWA-3-5-12']} --no-phd-prune-last-layer --tensorboard-dir {tmp_path}"
    world.pretrain([*flags, *start_flags, *shlex.split(more)])
    close(losses(tmp_path), serial("PHD-CSWA-3-5-12", "one-document"))


def test_reference_backend_gives_the_same(world, flags, start_flags, serial, tmp_path: Path):
    more = (
        f"{VARIANTS['PHD-longgen']} --dataloader-inter-document-masking "
        f"--phd-attention-backend reference --tensorboard-dir {tmp_path}"
    )
    world.pretrain([*flags, *start_flags, *shlex.split(more)])
    close(losses(tmp_path), serial("PHD-longgen", "packed"))

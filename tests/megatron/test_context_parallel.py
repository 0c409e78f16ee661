"""Ranks that share the sequence, and packed documents: the losses and gradient norms of one process.

Every way to cut and to communicate under every rule is in tests/attention/test_context_parallel.py; here they
come together with Megatron's layouts.
"""

import itertools
import shlex
from functools import cache
from pathlib import Path

import pytest

from tests.trainings import PATTERN, losses

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
}
DOCUMENTS = {
    "one-document": "",
    "packed": "--dataloader-inter-document-masking",
    # ranks have loss masks with other numbers of ones
    "masked": "--dataloader-inter-document-masking --eod-mask-loss",
}
# layout, documents, variant: everything at once on all layouts, the others on the plainest
CASES = [
    *(("CP2", "one-document", variant) for variant in ("PHD-CSWA-2-4-5", "PHD-CSWA-3-5-12", "longgen")),
    *(("CP2", "packed", variant) for variant in ("vanilla", "naive-2")),
    *((layout, "packed", "PHD-longgen") for layout in LAYOUTS),
    ("CP2", "masked", "vanilla"),
    *((layout, "masked", "PHD-CSWA-3-5-12") for layout in ("CP4", "CP2-DP2-distopt")),
]


@pytest.fixture(scope="module")
def flags(base_flags, packed_data, start_flags) -> list[str]:
    return [*base_flags, *packed_data, *start_flags, "--global-batch-size", "4"]  # the last data path counts


@pytest.fixture(scope="module")
def serial(world, flags, tmp_path_factory):
    """serial(variant, documents): the numbers of one process."""

    @cache
    def run(variant: str, documents: str) -> dict:
        folder = tmp_path_factory.mktemp(f"{variant}-{documents}")
        more = f"{VARIANTS[variant]} {DOCUMENTS[documents]} --tensorboard-dir {folder}"
        world.pretrain([*flags, *shlex.split(more)])
        return losses(folder)

    return run


def close(results: dict, expected: dict) -> None:
    for tag in ("lm loss", "grad-norm"):
        assert len(results[tag]) == 4
        assert results[tag] == pytest.approx(expected[tag], rel=1e-5)


@pytest.mark.parametrize(("layout", "documents", "variant"), CASES)
def test_layout_equals_one_process(layout, documents, variant, world, flags, serial, tmp_path: Path):
    ranks, layout_flags = LAYOUTS[layout]
    more = f"{VARIANTS[variant]} {DOCUMENTS[documents]} {layout_flags} --tensorboard-dir {tmp_path}"
    world.pretrain([*flags, *shlex.split(more)], ranks)
    close(losses(tmp_path), serial(variant, documents))


@pytest.mark.parametrize("variant", ["vanilla", "PHD-CSWA-3-5-12"])
def test_documents_change_the_loss(variant, serial):
    packed, one = (serial(variant, documents)["lm loss"] for documents in ("packed", "one-document"))
    assert packed != pytest.approx(one, rel=1e-4)


def test_variants_differ(serial):
    """A layout test proves nothing if copies or patterns have no effect."""
    packed = ("vanilla", "PHD-CSWA-3-5-12", "naive-2", "PHD-longgen")
    for documents, variants in {"one-document": ("vanilla", "longgen"), "packed": packed}.items():
        results = [serial(variant, documents)["lm loss"] for variant in variants]
        for first, second in itertools.combinations(results, 2):
            assert first != pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize(
    ("positions", "variant"), [("", "PHD-CSWA-3-5-12"), ("--reset-position-ids", "vanilla")]
)
def test_end_of_document_tokens_say_the_same(positions, variant, world, flags, serial, tmp_path: Path):
    """--reset-attention-mask finds the documents by their last token, the data loader by their lengths."""
    more = f"{VARIANTS[variant]} --reset-attention-mask {positions} --tensorboard-dir {tmp_path}"
    world.pretrain([*flags, *shlex.split(more)])
    close(losses(tmp_path), serial(variant, "packed"))


def test_reference_backend_gives_the_same(world, flags, serial, tmp_path: Path):
    more = (
        f"{VARIANTS['PHD-longgen']} --dataloader-inter-document-masking "
        f"--phd-attention-backend reference --tensorboard-dir {tmp_path}"
    )
    world.pretrain([*flags, *shlex.split(more)])
    close(losses(tmp_path), serial("PHD-longgen", "packed"))

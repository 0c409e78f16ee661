"""A copy embedding that a checkpoint lacks, wholly or for some copies, joins its training."""

import shlex
from pathlib import Path

import pytest

from tests.trainings import losses

NONE = shlex.split("--phd-copies 2 --phd-window 5 --phd-chunk 12")
TRAINED = 3  # iterations, before anything joins
FULLY = "--use-distributed-optimizer --dist-ckpt-optim-fully-reshardable"
STILL = ["--phd-copy-embedding-warmup-iters", str(10**9)]
"""What joins is as it was loaded, in fp32: 2e-3 / 1e9 is less than half a unit in the last place of 1e-4."""

LAYOUTS = {
    "fp32": ("", 1, ""),
    "bf16": ("--bf16", 1, ""),
    "DP2-distopt": (FULLY, 2, ""),
    "bf16-DP2-distopt": (f"--bf16 {FULLY}", 2, ""),
    "TP2": ("", 2, "--tensor-model-parallel-size 2"),
    "bf16-TP2-SP-distopt": (f"--bf16 {FULLY}", 2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    # a stage without young parameters has an empty group
    "bf16-PP2": ("--bf16", 2, "--pipeline-model-parallel-size 2"),
}
"""Flags of the checkpoint, which one rank trains, and of what goes on; the ranks and flags of that alone."""


@pytest.fixture(scope="module")
def flags(base_flags) -> list[str]:
    # the gradient norm is that of old and young parameters
    return [*base_flags, *NONE, "--clip-grad", "0", "--train-iters", "6", "--save-interval", "1"]


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
    from phd.checkpoint.read import CheckpointTensors, read_metadata

    found = CheckpointTensors(folder / f"iter_{iteration:07d}")
    found._tensors = {
        name: entry
        for name, entry in read_metadata(found.folder).state_dict_metadata.items()
        if hasattr(entry, "chunks")
    }
    return {name: found.read(name) for name in found._tensors}


@pytest.mark.parametrize("embedding", ["vector", "table"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_pass_is_the_checkpoint_s(layout, embedding, world, flags, trained, tmp_path):
    """Bit for bit; what was there goes on with its moments, and what joins has its source's master weights and
    moments of its first gradient alone.
    """
    import torch

    precision, ranks, more = LAYOUTS[layout]
    start = trained(precision)
    on = [*flags, *precision.split(), *more.split(), "--load", str(start), "--exit-interval", "4"]
    runs = {}
    for name, variant in {"none": [], embedding: ["--phd-copy-embedding", embedding, *STILL]}.items():
        logs, save = tmp_path / "logs" / name, tmp_path / name
        out = ["--save", str(save), "--tensorboard-dir", str(logs)]
        said = world.pretrain([*on, *variant, "--override-phd-variant", *out], ranks)
        runs[name] = (losses(logs)["lm loss"], tensors(save, 4), said)
    (plain, old, _), (grown, new, said) = runs["none"], runs[embedding]
    assert plain == grown and len(plain) == 1
    assert f"the {embedding} of copy 1 at iteration 3 joined the training; its learning rate rises" in said

    joined = {name for name in new if "copy_embedding" in name}
    assert new.keys() - joined == old.keys()
    state = {kind for name in joined if (kind := name.partition("copy_embedding")[0])}
    moments = {f"optimizer.state.{moment}." for moment in ("exp_avg", "exp_avg_sq")}
    assert moments <= state and len(state) == len(moments) + ("bf16" in layout or "distopt" in layout)
    young = next(name for name in joined if name.startswith("copy_embedding"))
    embedded = "embedding.word_embeddings.weight"
    for name, tensor in old.items():
        # the embedding has no gradient of copy 1 any more
        if name.startswith("optimizer.state.exp_avg") and (embedding == "vector" or embedded not in name):
            assert torch.equal(tensor, new[name]), name
    first = tensors(start, TRAINED)
    for kind in {"", *state} - moments:
        if embedding == "table":
            assert torch.equal(new[kind + young], first[kind + embedded])
        else:
            assert 0 < new[kind + young].abs().max() < 1e-10
    gradient, square = (new[f"optimizer.state.{moment}.{young}"] for moment in ("exp_avg", "exp_avg_sq"))
    assert gradient.abs().max() > 0
    torch.testing.assert_close((gradient / 0.1) ** 2, square / 0.001, rtol=1e-4, atol=0)

"""--train-only and --lora-rank: which parameters train, in every layout and after a resume; the others stay
as they are.
"""

import shlex
from pathlib import Path

import pytest

from phd.run.files import read_json
from phd.run.record import RUN_FILE
from tests.checkpoint.test_growth import tensors
from tests.trainings import PATTERN, losses
from tests.trainings import VARIANTS as COPIES
from tests.world import RankFailed

WORDS = "lora,embedding,norm"
ADAPTERS = "--lora-rank 3"
_QKV, _PROJ = (f"decoder.layers.*.self_attention.linear_{name}.lora." for name in ("qkv", "proj"))
TRAINED = {
    "embedding.word_embeddings.weight": 256 * 64,
    "decoder.layers.*.input_layernorm.weight": 4 * 64,
    **{f"{_PROJ}{name}": 4 * 64 * 3 for name in "ab"},
    **{f"{_QKV}{name}": 4 * 64 * 3 for name in ("query_a", "query_b", "key_a", "value_a")},
    **{f"{_QKV}{name}": 4 * 32 * 3 for name in ("key_b", "value_b")},
    "decoder.layers.*.pre_mlp_layernorm.weight": 4 * 64,
    "decoder.final_layernorm.weight": 64,
}
RECOMPUTED = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
DISTRIBUTED = "--use-distributed-optimizer --dist-ckpt-optim-fully-reshardable"


@pytest.fixture(scope="module")
def flags(base_flags, start_flags) -> list[str]:
    return [*base_flags, *start_flags, *COPIES["PHD-CSWA-3-5-12"], *PATTERN.split(), "--save-interval", "2"]


@pytest.fixture(scope="module")
def train(world, flags):
    """train(folder, words, flags, ranks) -> what was said."""

    def run(folder: Path, words: str = WORDS, more: str = ADAPTERS, ranks: int = 1) -> str:
        on = ["--run-dir", str(folder), "--tensorboard-dir", str(folder / "logs"), "--train-only", words]
        return world.pretrain([*flags, *on, *shlex.split(more)], ranks)

    return run


@pytest.fixture(scope="module")
def one(train, tmp_path_factory) -> tuple[Path, str]:
    """The single process's run, and its words."""
    folder = tmp_path_factory.mktemp("one")
    return folder, train(folder)


def test_what_trains_and_what_does_not(one, flags):
    """By name and number, in the first lines and in the record; and the optimizer has states of nothing
    else.
    """
    import torch

    folder, said = one
    assert f"> --train-only {WORDS} trains {sum(TRAINED.values()):,} parameters:" in said
    assert all(f">   {name}: {size:,}\n" in said for name, size in TRAINED.items())
    assert read_json(folder / RUN_FILE)["trained_parameters"] == TRAINED
    first = tensors(Path(flags[flags.index("--pretrained-checkpoint") + 1]), 1)
    trained = tensors(folder / "checkpoints", 4)
    moments = {name for name in trained if name.startswith("optimizer.state.exp_avg.")}
    states = {name.removeprefix("optimizer.state.exp_avg.") for name in moments}
    weights = {name for name in first if not name.startswith("optimizer.")}
    base = {name for name in weights if "embedding" in name or "norm" in name}
    added = {name.replace(".*", "") for name in TRAINED if "lora" in name}
    assert states == base | added and len(states) == 12
    assert {name for name in weights if not torch.equal(first[name], trained[name])} == base
    assert all(trained[name].abs().max() > 0 for name in added)


def test_first_the_adapters_change_nothing(world, flags, one, tmp_path):
    """B is zero: the first loss is that of the base model, bit for bit."""
    world.pretrain([*flags, "--train-iters", "1", "--tensorboard-dir", str(tmp_path)])
    assert losses(tmp_path)["lm loss"] == losses(one[0] / "logs")["lm loss"][:1]


LAYOUTS = {
    "TP2-SP-PP2": (
        "--tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2 " + RECOMPUTED
    ),
    "TP2-DP2-distopt": (
        f"--tensor-model-parallel-size 2 {DISTRIBUTED} --overlap-grad-reduce --overlap-param-gather"
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_resume(layout, train, one, tmp_path):
    """The single process's numbers, stopped half-way; and its weights where it goes on as one process."""
    import torch

    more = f"{ADAPTERS} {LAYOUTS[layout]}"
    train(tmp_path, more=f"{more} --exit-interval 2", ranks=4)
    train(tmp_path, more=more, ranks=4)
    assert read_json(tmp_path / RUN_FILE)["trained_parameters"] == TRAINED
    expected = losses(one[0] / "logs")
    for tag, found in losses(tmp_path / "logs").items():
        assert len(found) == 4 and found == pytest.approx(expected[tag], rel=1e-5)
    weights = [tensors(folder / "checkpoints", 4) for folder in (one[0], tmp_path)]
    for name in weights[0]:
        if name.startswith("optimizer."):
            continue
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-4, atol=2e-5)


def test_a_resume_is_exact(train, one, tmp_path):
    import torch

    train(tmp_path, more=f"{ADAPTERS} --exit-interval 2")
    train(tmp_path)
    was, now = (tensors(folder / "checkpoints", 4) for folder in (one[0], tmp_path))
    assert was.keys() == now.keys() and all(torch.equal(was[name], now[name]) for name in was)
    others = {
        ("lora,embedding", ADAPTERS): f"was training --train-only {WORDS}, and its optimizer knows no others",
        (WORDS, "--lora-rank 4"): "the checkpoint has --lora-rank 3, this run 4: pass the flags that",
        (
            WORDS,
            f"{ADAPTERS} --lora-alpha 8",
        ): "the checkpoint has --lora-alpha 16, this run 8: pass the flags",
        ("embedding,norm", ""): "the checkpoint has --lora-rank 3, this run 0; --lora-alpha 16, this run has",
    }
    for (words, more), refusal in others.items():
        with pytest.raises(RankFailed) as failure:
            train(tmp_path, words, more)
        assert refusal in str(failure.value)


def test_recomputation_behind_a_frozen_embedding(train, tmp_path):
    """No input of the first layer has a gradient, and its norms have one all the same."""
    for name, more in (("kept", ""), ("recomputed", RECOMPUTED)):
        train(tmp_path / name, "norm", f"{more} --train-iters 2")
    kept, recomputed = (losses(tmp_path / name / "logs") for name in ("kept", "recomputed"))
    assert recomputed == kept


REFUSED = {
    "embedding,nrom": "no parameter has 'nrom' in its name: correct the word, or leave it out",
    "embedding,": "'embedding,': write words with commas between, such as embedding,norm",
    # of 64 numbers the distributed optimizer gives the second rank none
    "final_layernorm": "trains too little for --use-distributed-optimizer: on a pipeline stage there is none",
    "norm --lora-rank 2": "--train-only norm does not train the adapters of --lora-rank: add lora to it",
    "norm --lora-alpha 2": "--lora-alpha is of --lora-rank: pass it too, or leave this out",
}


@pytest.mark.parametrize("given", REFUSED)
def test_refused(given, train, tmp_path):
    words, _, more = given.partition(" ")
    with pytest.raises(RankFailed) as failure:
        train(tmp_path, words, f"{DISTRIBUTED} {more}", ranks=2)
    assert REFUSED[given] in str(failure.value)


def test_a_tied_embedding_trains_the_output_layer(world, base_flags, tmp_path):
    """On the last of two stages it has a copy of another name."""
    flags = [each for each in base_flags if each != "--untie-embeddings-and-output-weights"]
    flags += ["--save", str(tmp_path / "first"), "--save-interval", "1"]
    world.pretrain([*flags, "--train-iters", "1"])
    on = [*flags[:-4], "--pretrained-checkpoint", str(tmp_path / "first"), "--train-only", "embedding"]
    on += ["--train-iters", "2"]
    found = []
    for ranks in (1, 2):
        more = ["--pipeline-model-parallel-size", str(ranks), "--tensorboard-dir", str(tmp_path / str(ranks))]
        said = world.pretrain([*on, *more], ranks)
        assert ">   embedding.word_embeddings.weight: 16,384, which is the output layer too\n" in said
        found.append(losses(tmp_path / str(ranks)))
    for tag, values in found[1].items():
        assert len(values) == 2 and values == pytest.approx(found[0][tag], rel=1e-5)

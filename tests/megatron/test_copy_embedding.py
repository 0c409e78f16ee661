"""Copy embeddings in the training model: vectors and tables."""

import json
from functools import cache
from pathlib import Path

import pytest

from phd.run.record import RUN_FILE, read_run_info
from tests.megatron.test_phd_model import VARIANTS, batch, build
from tests.trainings import PATTERN, scalars
from tests.world import megatron_globals

CSWA = VARIANTS["PHD-CSWA"]
ADDED = {
    "none": [],
    "vector": ["copy_embedding.vectors.0", "copy_embedding.vectors.1"],
    "table": [f"copy_embedding.tables.{number}.word_embeddings.weight" for number in (0, 1)],
}


def check_zero_start(features: str) -> None:
    """At first logits and losses are those without a copy embedding, and so is the next random number."""
    import torch

    seen = {}
    for embedding, added in ADDED.items():
        with megatron_globals():
            model = build(f"{CSWA} {features} --phd-copy-embedding {embedding}", scramble=False)
            next_number = torch.rand(1)
            tokens, positions, labels = batch()
            logits, losses = model(tokens, positions, None), model(tokens, positions, None, labels=labels)
            seen[embedding] = [next_number, logits, losses]
            names = [name for name, _ in model.named_parameters()]
            assert [name for name in names if "copy_embedding" in name] == added
            # behind the embedding: buckets of gradients follow this order
            assert names[1 : 1 + len(added)] == added
            losses.mean().backward()
            assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    for embedding in ("vector", "table"):
        for value, expected in zip(seen[embedding], seen["none"], strict=True):
            assert torch.equal(value, expected)


@pytest.mark.parametrize("features", ["", "--bf16"])
def test_starts_as_copies_that_enter_alike(world, features):
    """Bit for bit."""
    world.run(check_zero_start, features)


def check_dense_reference(embedding: str, features: str) -> None:
    """Losses, and gradients of what copies enter by, in fp64."""
    import torch

    with megatron_globals():
        model = build(f"{CSWA} {features} --phd-copy-embedding {embedding}")
        tokens, positions, labels = batch()
        losses = model(tokens, positions, None, labels=labels)
        losses.mean().backward()
    weights = {
        name: parameter.detach().double().requires_grad_() for name, parameter in model.named_parameters()
    }
    expected = dense_losses(model.config, weights, tokens, labels)
    expected.mean().backward()
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        error = (parameter.grad - weights[name].grad).abs().max() / weights[name].grad.abs().max()
        assert error < 1e-5, (name, float(error))


def dense_losses(config, weights: dict, tokens, labels, positions=None):
    """The model in plain torch, with copies as an axis and attention as one masked softmax.

    Args:
        positions: [b, s] or [1, s], of the rotary embedding; those of the rows without it.
    """
    import torch

    from phd.attention.reference import dense_mask, masked_attention

    copies, groups, size = config.phd_copies, config.num_query_groups, config.kv_channels
    heads = config.num_attention_heads
    rules = config.layers(config.num_layers, groups)

    def norm(hidden, name: str):
        return torch.nn.functional.rms_norm(
            hidden, hidden.shape[-1:], weights[name], config.layernorm_epsilon
        )

    def rotate(states):
        frequencies = 1 / (10000 ** (torch.arange(0, size, 2, dtype=torch.float64) / size))
        at = torch.arange(len(states))[None] if positions is None else positions
        angles = at.double().T[..., None] * frequencies  # [s, b, d/2]
        cos, sin = (part.repeat(1, 1, 2)[:, :, None, None] for part in (angles.cos(), angles.sin()))
        left, right = states.chunk(2, dim=-1)
        return states * cos + torch.cat((-right, left), dim=-1) * sin

    table = weights["embedding.word_embeddings.weight"]
    entering = [table[tokens]]
    for copy in range(copies - 1):
        if config.phd_copy_embedding == "none":
            entering.append(table[tokens])
        elif config.phd_copy_embedding == "vector":
            entering.append(table[tokens] + weights[f"copy_embedding.vectors.{copy}"])
        else:
            entering.append(weights[f"copy_embedding.tables.{copy}.word_embeddings.weight"][tokens])
    hidden = torch.stack(entering, dim=2).transpose(0, 1)  # [s, b, K, h]
    for number, rule in enumerate(rules):
        layer = f"decoder.layers.{number}"
        normed = norm(hidden, f"{layer}.input_layernorm.weight")
        # a group's queries, its key, its value
        fused = (normed @ weights[f"{layer}.self_attention.linear_qkv.weight"].T).unflatten(
            -1, (groups, -1, size)
        )
        query, key, value = fused.split([heads // groups, 1, 1], dim=-2)
        query, key, value = rotate(query.flatten(3, 4)), rotate(key.squeeze(-2)), value.squeeze(-2)
        # [b, g, s, K, s, K]
        mask = torch.stack([dense_mask(rule, len(hidden), head=head) for head in range(groups)], dim=1)
        context = masked_attention(query, key, value, mask, size**-0.5).flatten(-2)
        hidden = hidden + context @ weights[f"{layer}.self_attention.linear_proj.weight"].T
        normed = norm(hidden, f"{layer}.pre_mlp_layernorm.weight")
        gate, up = (normed @ weights[f"{layer}.mlp.linear_fc1.weight"].T).chunk(2, dim=-1)
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ weights[f"{layer}.mlp.linear_fc2.weight"].T
    last = norm(hidden[:, :, -1], "decoder.final_layernorm.weight")
    logits = (last @ weights["output_layer.weight"].T).transpose(0, 1)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none"
    ).view_as(labels)


@pytest.mark.parametrize("features", ["", PATTERN], ids=["full", "sparse"])
@pytest.mark.parametrize("embedding", ["vector", "table"])
def test_gradients_are_those_of_plain_torch(world, embedding, features):
    """Of every weight, through copies that see each other by the rule."""
    world.run(check_dense_reference, embedding, features)


def check_hidden_decoding() -> None:
    """An ordinary GPT of K*s positions that is given the copies' embeddings one after another."""
    import torch

    naive = "--phd-copies 2 --phd-naive --phd-consecutive-positions --phd-copy-embedding table"
    tokens, positions, labels = batch()
    with megatron_globals():
        model = build(naive)
        losses = model(tokens, positions, None, labels=labels)
        losses.mean().backward()
        ours = dict(model.named_parameters())
    with megatron_globals():
        plain = build("--seq-length 80 --max-position-embeddings 80", vanilla=True)
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                parameter.copy_(ours[name])
        tables = [
            plain.embedding.word_embeddings.weight,
            torch.nn.Parameter(ours["copy_embedding.tables.0.word_embeddings.weight"].detach().clone()),
        ]
        streams = torch.stack([table[tokens] for table in tables], dim=2)  # [b, s, K, h]
        both = torch.arange(80).expand(2, -1)
        doubled = labels.repeat_interleave(2, dim=1)
        expected = plain(
            None, both, None, decoder_input=streams.flatten(1, 2).transpose(0, 1).contiguous(), labels=doubled
        )[:, 1::2]
        expected.mean().backward()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    gradients["copy_embedding.tables.0.word_embeddings.weight"] = tables[1].grad
    assert gradients.keys() == ours.keys()
    for name, parameter in ours.items():
        error = (parameter.grad - gradients[name]).abs().max() / gradients[name].abs().max()
        assert error < 1e-5, (name, float(error))


def test_naive_with_tables_and_consecutive_positions_is_hidden_decoding(world):
    """Its plain form, losses and every gradient."""
    world.run(check_hidden_decoding)


def undecayed(embedding: str) -> dict[str, float]:
    """For each parameter that a copy embedding adds, how much of the weight decay is its."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    with megatron_globals():
        model = wrap(build(f"{CSWA} --phd-copy-embedding {embedding}"))
        optimizer = get_megatron_optimizer(
            OptimizerConfig(optimizer="adam", lr=1e-3, weight_decay=0.1), [model]
        )
        decay = {
            id(parameter): group["wd_mult"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return {
            name.removeprefix("module."): decay[id(parameter)]
            for name, parameter in model.named_parameters()
            if "copy_embedding" in name
        }


def wrap(model):
    """As Megatron trains it."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    return DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)


def test_vectors_are_not_decayed_and_tables_are(world):
    """As norms are not, and as the embedding is."""
    assert world.run(undecayed, "vector") == [dict.fromkeys(ADDED["vector"], 0.0)]
    assert world.run(undecayed, "table") == [dict.fromkeys(ADDED["table"], 1.0)]


RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
LAYOUTS = {
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "TP2-SP": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "CP2": (2, "--context-parallel-size 2"),
    "TP2-SP-recompute": (2, f"--tensor-model-parallel-size 2 --sequence-parallel {RECOMPUTE}"),
    "DP2-distopt-recompute": (
        2,
        f"--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather {RECOMPUTE}",
    ),
}
RUNS = {
    "vector": f"{CSWA} {PATTERN} --phd-copy-embedding vector --dataloader-inter-document-masking",
    "table": f"{CSWA} {PATTERN} --phd-copy-embedding table --dataloader-inter-document-masking",
    "hidden-decoding": "--phd-copies 3 --phd-naive --phd-consecutive-positions --phd-copy-embedding table",
}
TAGS = ("lm loss", "grad-norm", "phd/copy-embedding-norm-1", "phd/copy-embedding-norm-2")


@pytest.fixture(scope="module")
def serial(world, base_flags, packed_data, tmp_path_factory):
    """serial(run): flags that go on from common weights, one step old, and the numbers of one process, with
    the folder that has them.
    """

    @cache
    def train(run: str) -> tuple[list[str], dict]:
        folder, board = (str(tmp_path_factory.mktemp(name)) for name in (run, "board"))
        flags = [*base_flags, *packed_data, *RUNS[run].split(), "--global-batch-size", "4"]
        world.pretrain([*flags, "--train-iters", "1", "--save", folder, "--save-interval", "1"])
        flags += ["--load", folder, "--finetune", "--train-iters", "2"]
        world.pretrain([*flags, "--tensorboard-dir", board])
        return flags, numbers(board) | {"folder": board}

    return train


def numbers(folder) -> dict:
    """What was logged, and how many parameters there are."""
    info = read_run_info(Path(folder, RUN_FILE))
    return {tag: scalars(folder, tag) for tag in TAGS} | {"parameters": info.parameters}


@pytest.mark.parametrize(
    ("run", "layout"),
    [
        *(("vector", layout) for layout in ("TP2", "TP2-SP", "PP2", "CP2", "DP2-distopt-recompute")),
        *(("table", layout) for layout in ("TP2-SP", "PP2", "CP2", "DP2-distopt-recompute")),
        *(("hidden-decoding", layout) for layout in ("TP2-SP-recompute", "PP2", "CP2")),
    ],
)
def test_layout_equals_one_process(world, serial, run, layout, tmp_path):
    """Losses, gradient norms, and where the vectors and tables have got to."""
    flags, expected = serial(run)
    ranks, more = LAYOUTS[layout]
    world.pretrain([*flags, *more.split(), "--tensorboard-dir", str(tmp_path)], ranks)
    found = numbers(tmp_path)
    assert found["parameters"] == expected["parameters"]
    for tag in TAGS:
        assert len(expected[tag]) == 2 and expected[tag][1] > 0
        assert found[tag] == pytest.approx(expected[tag], rel=1e-5)


def test_run_says_what_embeds_copies(serial):
    """In phd_run.json: which, and parameters with it, as many as ids of a padded vocabulary or one a copy."""
    abouts = {
        run: json.loads(Path(serial(run)[1]["folder"], RUN_FILE).read_text()) for run in ("vector", "table")
    }
    for run, about in abouts.items():
        assert about["name"].startswith(f"PHD-CSWA-3-5-12+{run}+1sink.4.1.2-1full-1heads.")
        assert (about["copy_embedding"], about["consecutive_positions"]) == (run, False)
    vector, table = (about["parameters"] for about in abouts.values())
    assert table - vector == 2 * 64 * (256 - 1)


def replicated_gradients() -> list:
    """Of the vectors, as this tensor-parallel rank has them."""
    from unittest.mock import patch

    from phd.training import arguments

    with megatron_globals(), patch.object(arguments, "be_rank_0", lambda world_size: None):
        model = build(f"{CSWA} --phd-copy-embedding vector --tensor-model-parallel-size 2", scramble=False)
        tokens, positions, labels = batch()
        model(tokens, positions, None, labels=labels).mean().backward()
        return [vector.grad.tolist() for vector in model.copy_embedding.vectors.parameters()]


def test_vectors_have_one_gradient_on_all_tensor_parallel_ranks(world):
    """Without sequence parallelism; with it the gradients are of slices, and Megatron adds them up."""
    first, second = world.run(replicated_gradients, ranks=2)
    assert first == second
    assert all(any(vector) for vector in first)

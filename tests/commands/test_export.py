"""From Megatron to Hugging Face and back: same logits, same bits, from any layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainings import PATTERN, losses
from tests.world import ROOT, megatron_globals

SWA = ["--phd-copies", "2", "--phd-window", "5", "--phd-chunk", "0"]
RUNS = {
    "vanilla": ([], False),
    "vanilla, tied": ([], True),
    "PHD-2": (["--phd-copies", "2", "--phd-window", "1"], False),
    "PHD-SWA-2-5-inf": (SWA, True),
    "PHD-CSWA-3-5-12": (["--phd-copies", "3", "--phd-window", "5", "--phd-chunk", "12"], False),
    "longgen": (PATTERN.split(), False),
    "PHD-SWA+longgen": ([*SWA, *PATTERN.split()], False),
    "PHD-CSWA-3-5-12+vector": (["--variant", "PHD-CSWA-3-5-12+vector"], False),
    "PHD-SWA-2-5-inf+table": (["--variant", "PHD-SWA-2-5-inf+table"], True),
    "naive-2": (["--variant", "naive-2"], False),
    "PHD-SWA-2-5-inf, LongLoRA": (
        [
            *SWA,
            *("--lora-rank", "4", "--train-only", "lora,embedding", "--s2-groups", "4"),
            *("--rotary-seq-len-interpolation-factor", "3"),
        ],
        False,
    ),
    "naive-2-consecutive+table": (["--variant", "naive-2-consecutive+table"], False),
}


@pytest.fixture(scope="module")
def train(world, base_flags, tmp_path_factory):
    """train(name) -> the --save folder after three steps; each is trained once."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            variant, tied = RUNS[name]
            flags = [x for x in base_flags if not (tied and x == "--untie-embeddings-and-output-weights")]
            folder = tmp_path_factory.mktemp("run") / "checkpoints"
            schedule = ["--train-iters", "3", "--save", str(folder), "--save-interval", "3"]
            world.pretrain([*flags, *variant, *schedule, "--tokenizer-type", "NullTokenizer"])
            done[name] = folder
        return done[name]

    return run


def command(*arguments: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of `phd`; runs on a rank."""
    import contextlib
    import io

    from phd.commands.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), megatron_globals():
        return main(arguments), out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def phd(world):
    """phd(argument, ...): what :func:`command` gives."""

    def run(*arguments: object) -> tuple[int, str, str]:
        (answer,) = world.run(command, *map(str, arguments))
        return answer

    return run


@pytest.fixture(scope="module")
def export(phd):
    """export(checkpoint, folder), without a tokenizer."""

    def run(checkpoint: Path, folder: Path) -> None:
        status, _, err = phd("export", checkpoint, folder, "--no-tokenizer")
        assert status == 0, err

    return run


def megatron_logits(root: str, ids: list[list[int]], scale: int = 1) -> torch.Tensor:
    """What Megatron's model computes from a checkpoint; with several copies, of positions divided by
    ``scale``. Runs on a rank.
    """
    import phd.megatron  # noqa: F401

    # isort: split
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.checkpointing import load_checkpoint
    from megatron.training.global_vars import set_global_variables

    from phd.checkpoint.choice import chosen_folder
    from phd.checkpoint.read import read_args
    from phd.megatron import compat
    from phd.megatron.builder import PHDModelBuilder, model_config_from_args

    folder = chosen_folder(Path(root), None)
    assert folder is not None
    args = read_args(folder)
    changes = dict.fromkeys(("tensor_model_parallel_size", "pipeline_model_parallel_size", "world_size"), 1)
    reading = {"finetune": True, "no_load_optim": True, "no_load_rng": True, "load": root, "rank": 0}
    nothing = dict.fromkeys(("save", "tensorboard_dir", "virtual_pipeline_model_parallel_size"))
    vars(args).update(**changes, **reading, **nothing, sequence_parallel=False, data_parallel_size=1)
    with megatron_globals():
        set_global_variables(args)
        compat.apply(args.phd_copies)
        compat.initialize_megatron()
        groups = ProcessGroupCollection.use_mpu_process_groups()
        model = PHDModelBuilder(model_config_from_args(args)).build_model(groups, True, True)
        load_checkpoint([model], None, None)
        tokens = torch.tensor(ids)
        positions = torch.arange(tokens.shape[1])[None]
        scaled = {} if scale == 1 else {"rotary_positions": positions.double() / scale}
        with torch.no_grad():
            return model.eval()(tokens, positions, None, **scaled)


@pytest.mark.parametrize("name", RUNS)
def test_same_logits_as_megatron(name, train, export, world, tmp_path):
    """Full forward, and a prompt with steps through the cache."""
    from transformers import AutoModelForCausalLM

    import phd.hf  # noqa: F401

    export(train(name), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert (type(model).__name__ == "LlamaForCausalLM") == name.startswith("vanilla")
    assert model.config.tie_word_embeddings == RUNS[name][1]
    base = model.model
    own = getattr(base, "copy_embedding", torch.nn.Module()).named_parameters()
    moved = {
        key: (x - base.embed_tokens.weight if key.startswith("tables") else x).abs().max() for key, x in own
    }
    assert len(moved) == (model.config.copies.hidden if "vector" in name or "table" in name else 0)
    assert all(x > 1e-3 for x in moved.values())  # training told the copies apart
    ids = torch.randint(0, 255, (2, 40), generator=torch.Generator().manual_seed(0))
    (expected,) = world.run(megatron_logits, str(train(name)), ids.tolist())
    expected = expected[..., : model.config.vocab_size]
    tolerance = 1e-5 * expected.abs().max().item()
    with torch.no_grad():
        assert (model(ids).logits - expected).abs().max() <= tolerance
        output = model(ids[:, :17], logits_to_keep=1)
        for position in range(17, 40):
            assert (output.logits[:, 0] - expected[:, position - 1]).abs().max() <= tolerance
            step = ids[:, position : position + 1]
            output = model(step, past_key_values=output.past_key_values)


def test_checkpoints_are_merged(train, phd, export, tmp_path):
    """Alone or with an exported folder: the mean of what export writes of each, and nothing beside it."""
    checkpoint, other = train("PHD-CSWA-3-5-12+vector"), tmp_path / "other"
    export(checkpoint, other)
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: 3 * tensor for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"}
    )
    words = ["--weights", "0.5", "0.5", "--no-tokenizer", "--output"]
    status, out, err = phd("merge", checkpoint, other, *words, tmp_path / "out" / "merged")
    assert status == 0, err
    assert f"{checkpoint}: PHD-CSWA-3-5-12+vector, iteration 3, " in out
    merged = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    assert merged.keys() == tensors.keys()
    assert all(torch.equal(merged[name], 2 * tensor) for name, tensor in tensors.items())
    facts = json.loads((tmp_path / "out" / "merged" / "training.json").read_text())["merged_from"]
    assert [fact["folder"] for fact in facts] == [str(checkpoint), str(other)]
    assert [*(tmp_path / "out").iterdir()] == [tmp_path / "out" / "merged"]
    assert phd("merge", checkpoint, checkpoint / "iter_0000003", *words, tmp_path / "same")[0] == 0
    same = load_file(tmp_path / "same" / "model.safetensors")
    assert all(torch.equal(same[name], tensor) for name, tensor in tensors.items())


def test_scaled_positions_are_those_of_training(train, phd, world, tmp_path):
    """At a scale an exported model reads as many times its context, at the positions of E2-LLM's training; so
    does `phd eval` of the checkpoint, which scales what it has loaded.
    """
    from transformers import AutoModelForCausalLM

    from phd.hf.rope import scale_for, scale_model

    name = "PHD-CSWA-3-5-12+vector"
    status, _, err = phd("export", train(name), tmp_path / "model", "--no-tokenizer", "--rope-scale", 3)
    assert status == 0, err
    status, _, err = phd("export", train(name), tmp_path / "plain", "--no-tokenizer")
    assert status == 0, err
    scaled, plain = (
        AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval() for folder in ("model", "plain")
    )
    assert scaled.config.max_position_embeddings == 120
    assert scale_for(40, plain.config) == 1 and scale_for(81, plain.config) == 3
    ids = torch.randint(0, 255, (2, 120), generator=torch.Generator().manual_seed(0))
    (expected,) = world.run(megatron_logits, str(train(name)), ids.tolist(), 3)
    expected = expected[..., : scaled.config.vocab_size]
    tolerance = 1e-5 * expected.abs().max()
    with torch.no_grad():
        assert (scaled(ids).logits - expected).abs().max() <= tolerance
        assert (plain(ids).logits - expected).abs().max() > 100 * tolerance
        scale_model(plain, 3)
        assert torch.equal(plain(ids).logits, scaled(ids).logits)
    with pytest.raises(ValueError, match="of type linear already: leave it out"):
        scale_model(plain, 2)
    assert (
        "Rotary positions are divided by 3: it reads 120 tokens" in (tmp_path / "model/README.md").read_text()
    )


@pytest.mark.parametrize("name", ["PHD-CSWA-3-5-12", "PHD-CSWA-3-5-12+vector", "PHD-SWA-2-5-inf+table"])
def test_same_files_from_any_layout(name, train, export, world, base_flags, tmp_path):
    """A checkpoint, saved again by four ranks on TP 2 x PP 2."""
    first = train(name)
    again = tmp_path / "again"
    variant, tied = RUNS[name]
    flags = [x for x in base_flags if not (tied and x == "--untie-embeddings-and-output-weights")]
    flags += [*variant, "--load", str(first), "--save", str(again)]
    # One step with a learning rate of zero and no decay leaves the weights as they are.
    flags += ["--finetune", "--train-iters", "1", "--save-interval", "1", "--lr", "0", "--weight-decay", "0"]
    layout = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
    world.pretrain([*flags, *layout], 4)
    export(first, tmp_path / "one")
    export(again, tmp_path / "four")
    one, four = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "four"))
    assert one.keys() == four.keys()
    assert all(torch.equal(one[name], four[name]) for name in one)
    configs = [(tmp_path / name / "config.json").read_text() for name in ("one", "four")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    "name",
    [
        *("vanilla, tied", "PHD-CSWA-3-5-12", "longgen", "PHD-SWA-2-5-inf, LongLoRA"),
        *("PHD-CSWA-3-5-12+vector", "PHD-SWA-2-5-inf+table", "naive-2-consecutive+table"),
    ],
)
def test_there_and_back(name, train, export, phd, tmp_path):
    """Hugging Face -> Megatron -> Hugging Face, bit for bit."""
    export(train(name), tmp_path / "first")
    status, _, err = phd("import", tmp_path / "first", tmp_path / "imported")
    assert status == 0, err
    export(tmp_path / "imported", tmp_path / "second")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_llama_becomes_a_phd_transformer(world, phd, data, tmp_path):
    """A random Llama with a tokenizer of its own: imported, trained on as K = 2, its loss falls."""
    import shlex

    import sentencepiece
    from transformers import LlamaConfig, LlamaForCausalLM

    from phd.hf.tokenizer import load_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=40, head_dim=24,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    sentencepiece.SentencePieceTrainer.train(
        input=str(ROOT / "README.md"), model_prefix=str(tmp_path / "t"), vocab_size=400, model_type="bpe",
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=False, minloglevel=2,
    )  # fmt: skip
    load_tokenizer(tmp_path / "t.model").save_pretrained(tmp_path / "llama")
    status, out, err = phd("import", tmp_path / "llama", tmp_path / "imported")
    assert status == 0, err
    line = out.partition("pretrain_phd.py ")[2].partition("\nwith ")[0].replace("\\\n", " ")
    flags = [*shlex.split(line), "--phd-copies", "2", "--override-phd-variant"]
    flags = [x for x in flags if x != "--bf16"]  # in fp32 from bf16 weights
    training = "--micro-batch-size 2 --global-batch-size 4 --lr 3e-3 --train-iters 8"
    training += " --log-interval 1 --eval-interval 100 --eval-iters 0"
    flags += [*shlex.split(training), *data[:6], "--tensorboard-dir", str(tmp_path / "log")]
    output = world.pretrain(flags)
    assert "PHD-CSWA-2-16-32 continues from" in output
    curve = losses(tmp_path / "log")["lm loss"]
    assert curve[-1] < curve[0] - 0.2


def test_full_heads_of_another_pattern(train, phd, tmp_path):
    """The same weights, with layers that the training did not have."""
    from phd.hf import PHDLlamaForCausalLM

    gates, folder, plain = tmp_path / "gates.json", tmp_path / "heads", tmp_path / "plain"
    gates.write_text(json.dumps({"gates": [[0.9, 0.1], [0.2, 0.3], [0.8, 0.7], [0.6, 0.65]]}))
    flags = ["--attention-pattern", "sink.4.1.2", "--full-heads", gates, "--no-tokenizer"]
    status, _, err = phd("export", train("vanilla"), folder, *flags)
    assert status == 0, err
    variant = "1heads.1full.1sink.4.1.2-1sink.4.1.2-1full-1heads.1sink.4.1.2.1full"
    assert json.loads((folder / "config.json").read_text())["phd_variant"] == variant
    assert f"Its layers keep other keys than in training: {variant}." in (folder / "README.md").read_text()
    assert json.loads((folder / "training.json").read_text())["variant"] == "vanilla"
    assert PHDLlamaForCausalLM.from_pretrained(folder).generate(torch.tensor([[3] * 20])).shape[1] > 20
    status, _, err = phd("export", train("vanilla"), plain, *flags[2:])
    assert status != 0 and "the attention pattern full has none: write what the other heads keep" in err
    assert not plain.exists()


def test_what_lies_beside_the_weights(train, export, tmp_path):
    export(train("PHD-CSWA-3-5-12"), tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "training.json").read_text())
    assert facts["variant"] == "PHD-CSWA-3-5-12"
    assert facts["tokens"] == 3 * 8 * 40
    card = (tmp_path / "model" / "README.md").read_text()
    assert "PHD-CSWA-3-5-12" in card
    assert "trust_remote_code=True" in card
    assert (tmp_path / "model" / "modeling_phd.py").is_file()
    assert "only the first copy stays in the KV cache" in card
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["do_sample"] is True
    export(train("naive-2"), tmp_path / "naive")
    assert "all of them stay in the KV cache" in (tmp_path / "naive" / "README.md").read_text()
    export(train("PHD-SWA-2-5-inf+table"), tmp_path / "table")
    assert "by embedding tables of their own" in (tmp_path / "table" / "README.md").read_text()
    export(train("vanilla"), tmp_path / "vanilla")
    assert "llama.cpp" in (tmp_path / "vanilla" / "README.md").read_text()
    assert json.loads((tmp_path / "vanilla" / "config.json").read_text())["rope_theta"] == 10000


def test_bad_input_is_named(train, phd, tmp_path):
    status, _, err = phd("export", train("vanilla"), tmp_path / "out")
    assert status == 2
    assert "trained with a NullTokenizer: pass --tokenizer" in err
    assert not (tmp_path / "out").exists()
    torn = tmp_path / "torn"
    shutil.copytree(train("vanilla"), torn)
    file = next(torn.glob("iter_*/*.distcp"))
    file.write_bytes(file.read_bytes()[:-1000])
    status, _, err = phd("export", torn, tmp_path / "out", "--no-tokenizer")
    assert status == 2
    assert f"{file} ends after" in err
    status, _, err = phd("import", tmp_path, tmp_path / "out")
    assert status == 2
    assert "config.json is not there" in err
    assert list(tmp_path.glob(".out-*")) == []

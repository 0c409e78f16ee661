"""A start compares itself with the checkpoint that it goes on from, before anything is touched."""

import json
import shlex
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from phd.run.record import METRICS_FILE
from phd.run.status import FAILED, judge
from tests.runs import record
from tests.training.test_arguments import refused_at_start
from tests.trainings import END_OF_DOCUMENT, write_documents

PHD = shlex.split("--phd-copies 2 --phd-window 5 --phd-chunk 12")
SCHEDULE = shlex.split("--train-iters 4 --save-interval 2 --eval-interval 100")


def without(flags: list[str], *names: str) -> list[str]:
    """The flags less these, with their values."""
    kept: list[str] = []
    words = iter(flags)
    for word in words:
        if word not in names:
            kept.append(word)
        elif not flags[flags.index(word) + 1].startswith("--"):
            next(words)
    return kept


@pytest.fixture(scope="module")
def flags(base_flags) -> list[str]:
    return [*base_flags, *PHD, *SCHEDULE]


@pytest.fixture(scope="module")
def trained(world, flags, tmp_path_factory) -> Path:
    """A run that stopped after two of four iterations."""
    run = tmp_path_factory.mktemp("trained") / "run"
    world.pretrain([*flags, "--run-dir", str(run), "--exit-interval", "2"])
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it, for a test to go on with."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(file): file.read_bytes()
        for file in run.rglob("*")
        if file.is_file() and file.name not in ("status.json", "lock")
    }


# Flags of a resume -> what is said.
OTHER_MODELS = {
    "--hidden-size 32": "--hidden-size 64, this run 32; --kv-channels 16, this run 8:",
    "--num-layers 2": "--num-layers 4, this run 2:",
    "--num-attention-heads 8 --kv-channels 16": "--num-attention-heads 4, this run 8:",
    "--num-query-groups 4": "--num-query-groups 2, this run 4:",
    "--ffn-hidden-size 64": "--ffn-hidden-size 128, this run 64:",
    "--kv-channels 32": "--kv-channels 16, this run 32:",
    "--qk-layernorm": "no --qk-layernorm, this run has:",
    "--add-qkv-bias": "no --add-qkv-bias, this run has:",
    "--norm-epsilon 1e-3": "--norm-epsilon 1e-05, this run 0.001:",
    "--apply-layernorm-1p": "no --apply-layernorm-1p, this run has:",
    "--position-embedding-type none": "--position-embedding-type rope, this run none:",
    "--rotary-base 500000": "--rotary-base 10000, this run 500000:",
    "--rotary-percent 0.5": "--rotary-percent 1.0, this run 0.5:",
    "--vocab-size 254": "--vocab-size 255, this run 254:",
    "--num-experts 2 --moe-router-topk 1": "no --num-experts, this run 2",
    "--normalization LayerNorm": "--normalization RMSNorm, this run LayerNorm:",
}
LESS = {
    "--swiglu": "--swiglu, this run has not:",
    "--disable-bias-linear": "--disable-bias-linear, this run has not; no --add-qkv-bias, this run has:",
    "--untie-embeddings-and-output-weights": "--untie-embeddings-and-output-weights, this run has not:",
    "--group-query-attention --num-query-groups": "--num-query-groups 2, this run 4:",
}


def answers(flags: list[str], changes: list[tuple[list[str], list[str]]]) -> list[str]:
    """What start-up refuses or prints where some flags are left out and others added."""
    import contextlib
    import io

    from phd.training.arguments import parse_and_validate_args

    said = []
    for less, more in changes:
        sys.argv = ["pretrain_phd.py", *without(flags, *less), *more]
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            try:
                parse_and_validate_args()
                said.append(output.getvalue())
            except ValueError as error:
                said.append(f"refused: {error}")
    return said


def test_another_model_is_refused(world, flags, run):
    """By the flag of each difference, in one line; also where it would load, and mean something else."""
    before = contents(run)
    changes = [([], more.split()) for more in OTHER_MODELS] + [(less.split(), []) for less in LESS]
    (said,) = world.run(answers, [*flags, "--run-dir", str(run)], changes)
    for answer, part in zip(said, [*OTHER_MODELS.values(), *LESS.values()], strict=True):
        assert answer.startswith("refused: the checkpoint has ") and "\n" not in answer, (part, answer)
        assert f"the checkpoint has {part}" in answer, (part, answer)
        remedy = f"pass the flags that {run}/checkpoints/iter_0000002 was trained with, or take another run"
        assert remedy in answer
    assert contents(run) == before


def test_all_differences_are_named_at_once(world, flags, run):
    more = shlex.split("--num-layers 2 --rotary-base 1 --phd-window 4")
    (said,) = world.run(answers, [*flags, "--run-dir", str(run)], [([], more)])
    assert "--num-layers 4, this run 2; --rotary-base 10000, this run 1; it was trained as" in said[0]
    assert "it was trained as PHD-CSWA-2-5-12, this run is PHD-CSWA-2-4-12: pass" in said[0]


def test_first_weights_are_compared_too(world, flags, run, tmp_path):
    """There data, schedule, length and positions may be others; the last are told."""
    first = ["--run-dir", str(tmp_path / "new"), "--pretrained-checkpoint", str(run / "checkpoints")]
    changes = ["--hidden-size 32", "--lr 1 --seed 3 --split 1,1,1", "--rotary-base 9", "--seq-length 20"]
    (said,) = world.run(answers, [*flags, *first], [([], change.split()) for change in changes])
    assert "the checkpoint has --hidden-size 64, this run 32" in said[0]
    assert said[0].endswith("or take another --pretrained-checkpoint")
    assert "trained with" not in said[1] and "refused" not in said[1]
    assert "iter_0000002 was trained with other arguments: --rotary-base 10000, now 9\n" in said[2]
    assert "refused" not in said[3]
    assert not (tmp_path / "new").exists()


def test_the_arguments_of_the_checkpoint_are_no_difference(world, flags, run):
    """--use-checkpoint-args, with which the shape need not be typed; what is typed else is refused."""
    names = ["--hidden-size", "--num-layers", "--num-attention-heads", "--ffn-hidden-size"]
    more = ["--run-dir", str(run), "--use-checkpoint-args"]
    (said,) = world.run(answers, [*flags, *more], [(names, []), (names, ["--num-layers", "2"])])
    assert "refused" not in said[0]
    assert "the checkpoint has --num-layers 4, this run 2" in said[1]


# What a resume may change, and is told.
OTHER_TRAININGS = {
    "--split 80,10,10": "--split 90,5,5, now 80,10,10",
    "--seed 8": "--seed 7, now 8",
    "--adam-beta2 0.5": "--adam-beta2 0.999, now 0.5",
    "--weight-decay 0.3": "--weight-decay 0.01, now 0.3",
    "--lr 1": "--lr 0.002, now 1.0",
    "--lr-decay-style cosine": "--lr-decay-style constant, now cosine",
    "--global-batch-size 4": "--global-batch-size 8, now 4",
    "--clip-grad 0": "--clip-grad 1.0, now 0.0",
    "--optimizer sgd": "--optimizer adam, now sgd",
    "--train-iters 6": "--train-iters 4, now 6",
    "--train-iters 3 --lr-decay-iters 9": "--lr-decay-iters 4, now 9, --train-iters 4, now 3",
    "--eod-mask-loss": "--eod-mask-loss False, now True",
    "--hidden-dropout 0.1": "--hidden-dropout 0.0, now 0.1",
}
LAYOUT_AND_LOGGING = (
    "",
    "--micro-batch-size 1",
    "--overlap-grad-reduce",
    "--log-interval 2 --save-interval 1 --exit-interval 3",
    "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    "--phd-attention-backend reference",
    "--num-workers 1",
)


def test_other_training_is_told(world, flags, run):
    """In one line, with what it was; nothing is said of layout and logging."""
    changes = [([], more.split()) for more in (*OTHER_TRAININGS, *LAYOUT_AND_LOGGING)]
    (said,) = world.run(answers, [*flags, "--run-dir", str(run)], changes)
    for answer, part in zip(said, OTHER_TRAININGS.values(), strict=False):
        assert f"iter_0000002 was trained with other arguments: {part}\n" in answer, (part, answer)
    for answer in said[len(OTHER_TRAININGS) :]:
        assert "other arguments" not in answer and "refused" not in answer


def test_other_data_are_told_recorded_and_refused_by_compare(world, flags, run, tmp_path):
    from phd.compare.arguments import refuse_differences
    from phd.compare.logs import find_runs

    write_documents(tmp_path / "other", [np.arange(200) % END_OF_DOCUMENT for _ in range(60)])
    untouched = Path(shutil.copytree(run, tmp_path / "straight"))
    world.pretrain([*flags, "--run-dir", str(untouched)])
    output = world.pretrain([*flags, "--run-dir", str(run), "--data-path", str(tmp_path / "other")])
    (line,) = [line for line in output.splitlines() if "other arguments" in line]
    assert line.endswith(f"--data-path {flags[flags.index('--data-path') + 1]}, now {tmp_path / 'other'}")
    starts = json.loads((run / "phd_run.json").read_text())["starts"]
    assert [start["iteration"] for start in starts] == [0, 2]
    assert starts[0]["differs"]["data_path"] == [flags[flags.index("--data-path") + 1]]
    (one,), (other,) = find_runs(untouched), find_runs(run)
    refuse_differences([one, one])
    with pytest.raises(ValueError, match="data-path .* up to iteration 2 and with .* after it"):
        refuse_differences([one, other])


def test_a_refused_resume_has_failed(world, flags, run):
    """It is not started again, and the run can go on."""
    before = contents(run)
    with pytest.raises(
        AssertionError, match="exit: pretrain_phd.py: error: the checkpoint has --num-layers 4, this"
    ):
        world.pretrain([*flags, "--run-dir", str(run), "--num-layers", "2"])
    code, line = judge(run)
    assert code == FAILED and line.startswith("failed: the checkpoint has --num-layers 4, this run 2: pass")
    assert contents(run) == before
    world.pretrain([*flags, "--run-dir", str(run)])
    assert judge(run)[0] == 0


def exits(flags: list[str]) -> object:
    """What main() exits with."""
    import pretrain_phd
    from tests.world import megatron_globals

    sys.argv = ["pretrain_phd.py", *flags]
    with megatron_globals(), pytest.raises(SystemExit) as stop:
        pretrain_phd.main()
    return stop.value.code


def test_one_rank_says_it(world, flags, run):
    said = world.run(exits, [*flags, "--run-dir", str(run), "--num-layers", "2"], ranks=2)
    assert "--num-layers 4, this run 2" in said[0] and said[1] == 1


def test_another_variant_is_refused_unless_asked_for(world, flags, run):
    other = [*flags, "--phd-copies", "3", "--run-dir", str(run), "--exit-interval", "3"]
    (answer,) = world.run(refused_at_start, other)
    assert (
        "was trained as PHD-CSWA-2-5-12, this run is PHD-CSWA-3-5-12: pass --variant PHD-CSWA-2-5-12, or"
        in answer
    )
    output = world.pretrain([*other, "--override-phd-variant"])
    assert "PHD-CSWA-3-5-12 continues from" in output
    assert "trained as PHD-CSWA-2-5-12" in output


def variant_refusals(trained: dict, ours: list[dict]) -> list[object]:
    """How runs of the variants ``ours`` differ from a checkpoint with the arguments ``trained``."""
    from phd.config import PHDConfig
    from phd.training.other_model import other_variant

    return [other_variant(Namespace(**trained), PHDConfig(**fields)) for fields in ours]


def test_another_attention_pattern_is_another_variant(world):
    """By what its layers keep; a list may spell what a name says, and older arguments its numbers."""
    sink = {"attention_pattern": "longgen-sink"}
    listed, few = {"attention_pattern": "1sink-2full-1sink"}, {"attention_pattern": "longgen-sink.64.1.4"}
    (answers,) = world.run(variant_refusals, {"num_layers": 4, **sink}, [sink, listed, few, {}])
    assert answers == [
        *(None, None, ("longgen-sink", "longgen-sink.64.1.4")),
        ("longgen-sink", "vanilla"),
    ]
    older = {"num_layers": 4, "attention_pattern_local_blocks": 4, "attention_pattern_stride": 8, **sink}
    (answers,) = world.run(variant_refusals, older, [few])
    assert answers == [None]
    (answers,) = world.run(variant_refusals, {"num_layers": 4}, [{}, sink])
    assert answers == [None, ("vanilla", "longgen-sink")]


def stored_answers(flags: list[str], cases: list[tuple[dict, str]]) -> list[str]:
    """What start-up says with more flags where the checkpoint has other arguments."""
    from unittest.mock import patch

    from phd.checkpoint.read import read_args

    said = []
    for trained, more in cases:

        def stored(folder: Path, trained: dict = trained) -> Namespace:
            return Namespace(**vars(read_args(folder)) | trained)

        with patch("phd.training.resume.read_args", stored):
            said += answers(flags, [([], more.split())])
    return said


OVERRIDE = "--override-phd-variant --phd-copy-embedding"
DROPS = "the checkpoint has --phd-copy-embedding vector with --phd-copies {}, and this run, {}, would drop"
SPLIT = {"use_distributed_optimizer": True}
# Arguments of the checkpoint, more flags -> what is said.
EMBEDDINGS = [
    (
        {},
        "--phd-copy-embedding vector",
        "was trained as PHD-CSWA-2-5-12, this run is PHD-CSWA-2-5-12+vector: pass",
    ),
    ({}, f"{OVERRIDE} vector", "trained as PHD-CSWA-2-5-12; anew begins the vector of copy 1 as zero\n"),
    (
        {},
        f"{OVERRIDE} vector --optimizer sgd",
        "cannot take them in with --optimizer sgd: begin a new run with",
    ),
    (
        SPLIT,
        f"{OVERRIDE} table --use-distributed-optimizer",
        "with --dist-ckpt-optim-fully-reshardable, until",
    ),
    (
        {**SPLIT, "dist_ckpt_optim_fully_reshardable": True},
        f"{OVERRIDE} table --use-distributed-optimizer",
        "anew begins the table of copy 1 as the embedding\n",
    ),
    *(
        ({"phd_copy_embedding": "vector", "phd_copies": copies}, more, DROPS.format(copies, ours))
        for copies, more, ours in [
            (2, "", "none with 2"),
            (2, f"{OVERRIDE} none", "none with 2"),
            (2, f"{OVERRIDE} table", "table with 2"),
            (3, f"{OVERRIDE} vector", "vector with 2"),
            (2, f"{OVERRIDE} none --phd-copies 1", "none with 1"),
        ]
    ),
]


def test_copy_embeddings_are_compared(world, flags, run):
    """What was learned is not dropped; what is missing joins where it can; before anything is touched."""
    before = contents(run)
    (said,) = world.run(
        stored_answers, [*flags, "--run-dir", str(run)], [(trained, more) for trained, more, _ in EMBEDDINGS]
    )
    for answer, (trained, more, part) in zip(said, EMBEDDINGS, strict=True):
        assert part in answer, (trained, more, answer)
        assert ("refused" in answer) == ("anew begins" not in answer)
    assert contents(run) == before


def with_stored_backends(flags: list[str], checkpoint: Path, backends: list[str]) -> list[tuple]:
    """What start-up says, and the K that an export finds, where the checkpoint names a backend."""
    from unittest.mock import patch

    from phd.checkpoint.read import read_args
    from phd.loading import describe, open_checkpoint

    said = []
    for backend in backends:

        def stored(folder: Path, backend: str = backend) -> Namespace:
            return Namespace(**vars(read_args(folder)) | {"phd_attention_backend": backend})

        with (
            patch("phd.training.resume.read_args", stored),
            patch("phd.checkpoint.read.read_args", stored),
        ):
            trained, tensors, _ = open_checkpoint(checkpoint)
            said.append((*answers(flags, [([], [])]), describe(trained, tensors, None, True)[0].copies.count))
    return said


def test_backends_of_older_checkpoints(world, flags, run):
    """They are no flag's values any more; a start goes on without a word, and an export finds the model."""
    checkpoint, backends = run / "checkpoints", ["auto", "flex"]
    (said,) = world.run(with_stored_backends, [*flags, "--run-dir", str(run)], checkpoint, backends)
    for answer, copies in said:
        assert "refused" not in answer and "trained with other" not in answer
        assert copies == 2


def test_another_tokenizer_is_refused(tmp_path):
    """By its content, where that is known; by its name, where it is not."""
    from phd.training.other_model import other_tokenizer

    (tmp_path / "a.model").write_text("one")
    (tmp_path / "b.model").write_text("two")

    def args(model, sha256=None, kind="SentencePieceTokenizer", vocab=None):
        path = model and str(tmp_path / model)
        return {
            **{"tokenizer_type": kind, "tokenizer_model": path, "tokenizer_sha256": sha256},
            **{"vocab_size": vocab, "vocab_extra_ids": 0},
        }

    assert (
        other_tokenizer(args("a.model", "1"), args("b.model", "1")) == []
    )  # the same file under another name
    (said,) = other_tokenizer(args("a.model", "1"), args("a.model", "2"))  # the file was replaced
    assert said.endswith("a.model (sha256 1 and 2)")
    (said,) = other_tokenizer(args("a.model", kind="HuggingFaceTokenizer"), args("a.model", "1"))
    assert said == "--tokenizer-type HuggingFaceTokenizer, this run SentencePieceTokenizer"
    # of older code, which recorded no content
    assert len(other_tokenizer(args("a.model"), args("b.model", "1"))) == 1
    assert other_tokenizer(args("gone/a.model"), args("a.model", "1")) == []
    assert len(other_tokenizer(args("gone/c.model"), args("a.model", "1"))) == 1
    null = [args(None, kind="NullTokenizer", vocab=size) for size in (255, 254)]
    assert other_tokenizer(*null) == ["--vocab-size 255, this run 254"]


@pytest.mark.parametrize("flag", ["finetune", "no_load_optim", "no_load_rng", "no_save_optim", "no_save_rng"])
def test_what_every_start_would_repeat_is_refused(world, flag, flags, run):
    name = "--" + flag.replace("_", "-")
    (said,) = world.run(answers, [*flags, "--run-dir", str(run)], [([], [name])])
    assert said[0].startswith(f"refused: {name} ") and "--pretrained-checkpoint" in said[0]


def test_a_folder_of_checkpoints_is_gone_on_from_or_left_alone(world, flags, run, tmp_path):
    """Also where other weights, or these at iteration 0, begin. With the --load that is named it goes on."""
    save = run / "checkpoints"
    shutil.copy(run / METRICS_FILE, save)
    before = contents(run)
    saving = [*flags, "--save", str(save)]
    changes = ["", f"--load {tmp_path / 'other'}", f"--load {save} --finetune", f"--load {save}"]
    (said,) = world.run(answers, saving, [([], change.split()) for change in changes])
    holds = f"refused: --save {save} holds checkpoints already (the newest: iteration 2), and "
    assert (
        said[0] == f"{holds}there is no --load: pass --load {save} to go on from them, or take another --save"
    )
    assert said[1].startswith(f"{holds}--load {tmp_path / 'other'} is another folder: pass --load {save} ")
    assert said[2].startswith(f"{holds}--finetune begins at iteration 0: leave it out")
    assert "refused" not in said[3]
    assert contents(run) == before
    world.pretrain([*saving, "--load", str(save)])
    assert [line["iteration"] for line in record(save) if line["kind"] == "train"] == [1, 2, 3, 4]


def test_a_start_that_would_do_nothing_is_refused(world, flags, run, tmp_path):
    """--exit-on-missing-checkpoint ends it without an error, and it were queued again for ever."""
    new = [*flags, "--run-dir", str(tmp_path / "new"), "--exit-on-missing-checkpoint"]
    (said,) = world.run(refused_at_start, new)
    assert f"there is no checkpoint in {tmp_path / 'new'}/checkpoints" in said
    assert "leave the flag out for the first start" in said
    assert not (tmp_path / "new").exists()
    assert world.run(refused_at_start, [*flags, "--run-dir", str(run), "--exit-on-missing-checkpoint"]) == [
        ""
    ]

"""Files that flags name and that are not there; what is told of them before a training begins."""

import re
import sys
from argparse import Namespace

import pytest

from tests.runs import record
from tests.training.test_arguments import FLAGS, failure, without
from tests.trainings import MODEL, TRAINING

NO_DATA = [flag for flag in FLAGS if flag != "--mock-data"]


def missing(cases: list[list[str]]) -> list[str]:
    """What start-up says to these flags."""
    from phd.training.arguments import parse_and_validate_args
    from phd.training.inputs import refuse_missing_inputs

    said = []
    for case in cases:
        sys.argv = ["pretrain_phd.py", *case]
        try:
            refuse_missing_inputs(parse_and_validate_args().args)
            said.append("")
        except ValueError as error:
            said.append(str(error))
    return said


def test_files_that_are_not_there(world, data, tmp_path):
    """Each by its flag; and with the file in its place the training goes on."""
    prefix = data[data.index("--data-path") + 1]
    blend, empty = tmp_path / "blend.txt", str(tmp_path / "empty")
    model = [*without("--tokenizer-type"), "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model"]
    cases = [
        [*NO_DATA, "--data-args-path", str(blend)],
        [*NO_DATA, "--data-path", "/does/not"],
        [*NO_DATA, "--data-path", prefix],
        [*model, str(tmp_path / "tok.model")],
        [*FLAGS, "--pretrained-checkpoint", empty],
        [*FLAGS, "--load", empty],
        [*FLAGS, "--load", empty, "--save", empty, "--save-interval", "1"],
    ]
    (said,) = world.run(missing, cases)
    correct = "correct the path, or put it back"
    anew = "correct the path, or leave it out to begin with new weights"
    assert said == [
        f"--data-args-path {blend} is no file: {correct}",
        "/does/not.idx of --data-path is missing: put it back, or make it with `phd data tokenize`",
        "",
        f"--tokenizer-model {tmp_path / 'tok.model'} is no file: {correct}",
        f"there is no checkpoint in --pretrained-checkpoint {empty}: {anew}",
        f"there is no checkpoint in --load {empty}: {anew}",
        "",
    ]
    blend.write_text(f"1 {prefix}")
    assert world.run(missing, cases[:1]) == [[""]]


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_weights_of_a_blend(world, data, weight):
    """Of 0 Megatron ended in a ZeroDivisionError."""
    prefix = data[data.index("--data-path") + 1]
    cases = [[*NO_DATA, "--data-path", weight, prefix, "1", prefix], [*NO_DATA, "--data-path", "1", prefix]]
    (said,) = world.run(missing, cases)
    remedy = "take a number above 0, or leave the data set out"
    assert said == [f"{prefix} of --data-path has weight {weight}: {remedy}", ""]


def test_the_first_start_leaves_no_folder(world, tmp_path):
    run = tmp_path / "run"
    (end,) = world.run(failure, [*NO_DATA, "--run-dir", str(run), "--data-path", "/does/not"])
    assert "pretrain_phd.py: error: /does/not.idx of --data-path is missing" in end
    assert not run.exists()


def test_a_torn_cache_of_somebody_else(world, data, tmp_path):
    """Named; where it is deleted, as the line says, it is built again."""
    flags = [*MODEL, *TRAINING, *data, "--data-cache-path", str(tmp_path / "cache"), "--train-iters", "1"]
    flags += ["--eval-iters", "1", "--tensorboard-dir", str(tmp_path / "logs")]
    world.pretrain(flags)
    torn = sorted((tmp_path / "cache").glob("*.npy"))[0]
    for left in (torn.read_bytes()[:-8], b""):
        torn.write_bytes(left)
        (end,) = world.run(failure, flags)
        assert f"pretrain_phd.py: error: rank 0: {torn} of --data-cache-path was cut short" in end
    torn.unlink()
    world.pretrain(flags)
    assert torn.stat().st_size > 0


def padding(tensor: int, multiple: int, padded: int, vocab_size: int = 255) -> str | None:
    from phd.training.sizes import padding_line

    args = Namespace(tensor_model_parallel_size=tensor, make_vocab_size_divisible_by=multiple)
    args.padded_vocab_size = padded
    return padding_line(args, vocab_size)


def test_padding_of_the_vocabulary(world):
    """Told where tensor parallelism makes it another, and what makes it the same."""
    assert world.run(padding, 2, 128, 256) == [None]
    assert world.run(padding, 1, 128, 256) == [None]
    (line,) = world.run(padding, 4, 128, 512)
    assert line == (
        "--tensor-model-parallel-size 4 pads the vocabulary to 512 ids, 1 would to 256: the first losses are "
        "higher by 0.6931; --make-vocab-size-divisible-by 64 makes them equal"
    )
    assert world.run(padding, 4, 64, 256) == [None]
    assert world.run(padding, 4, 128, 300) == [None], "the user's own --padded-vocab-size"


def test_padding_is_told_when_it_starts(world, base_flags):
    flags = [*base_flags, "--train-iters", "1", "--tensor-model-parallel-size", "2"]
    said = world.pretrain([*flags, "--make-vocab-size-divisible-by", "256"], ranks=2)
    assert (
        said.count("> --tensor-model-parallel-size 2 pads the vocabulary to 512 ids, 1 would to 256: ") == 1
    )
    same = world.pretrain([*flags, "--make-vocab-size-divisible-by", "128"], ranks=2)
    assert "pads the vocabulary" not in same


@pytest.mark.parametrize("interval", [1, 2])
def test_every_line_of_the_log_is_of_its_own_iterations(world, base_flags, tmp_path, interval):
    """Megatron counted the first iteration of a start twice: the second line was a mean of two."""
    log = world.pretrain([*base_flags, "--log-interval", str(interval), "--run-dir", str(tmp_path / "run")])
    printed = [float(loss) for loss in re.findall(r"lm loss: (\S+) \|", log)]
    lines = record(tmp_path / "run")
    losses = [line["lm loss"] for line in lines if line["kind"] == "train"]
    means = [losses[0], (losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert printed == pytest.approx(losses if interval == 1 else means, rel=1e-6)

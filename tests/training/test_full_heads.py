"""--full-heads becomes part of the pattern, which everything else reads."""

import json
import shlex
import sys

from tests.training.test_arguments import FLAGS, refused_at_start

# the model of FLAGS has 4 layers with 2 key/value heads
GATES = [[0.9, 0.1], [0.2, 0.3], [0.8, 0.7], [0.6, 0.65]]


def started(more: str) -> tuple[str, str, str]:
    from phd.training.arguments import parse_and_validate_args

    sys.argv = ["pretrain_phd.py", *FLAGS, *shlex.split(more)]
    args = parse_and_validate_args().args
    return args.attention_pattern, args.wandb_exp_name, args.full_heads


def refusals(cases: list[str]) -> list[str]:
    return [refused_at_start([*FLAGS, *shlex.split(more)]) for more in cases]


def test_the_pattern_has_the_heads(world, tmp_path):
    """As does the name of the run, which W&B takes up to 128 characters long."""
    file = tmp_path / "gates.json"
    file.write_text(json.dumps({"gates": GATES}))
    flags = f"--attention-pattern sink.4.1.2 --full-heads {file}"
    pattern = "1heads.1full.1sink.4.1.2-1sink.4.1.2-1full-1heads.1sink.4.1.2.1full"
    (answer,) = world.run(started, flags)
    assert answer == (pattern, pattern, str(file))
    (answer,) = world.run(
        started, f"{flags} --full-heads-share 0.25 --phd-copies 2 --phd-window 4 --phd-chunk 8"
    )
    few = "1heads.1full.1sink.4.1.2-1sink.4.1.2-1heads.1full.1sink.4.1.2-1sink.4.1.2"
    assert answer[:2] == (few, f"PHD-CSWA-2-4-8+{few}")


def test_flags_that_do_not_fit(world, tmp_path):
    file, other = tmp_path / "gates.json", tmp_path / "other.json"
    file.write_text(json.dumps({"gates": GATES}))
    other.write_text(json.dumps({"gates": GATES[:3]}))
    sparse = "--attention-pattern sink --full-heads"
    cases = {
        "--full-heads-share 0.5": "--full-heads-share is of --full-heads: pass it too, or leave this out",
        f"--full-heads {file}": f"--full-heads {file}: full heads are of layers that are sparse otherwise",
        f"{sparse} {other}": f"--full-heads {other}: the gates are of 3 layers with 2",
        f"{sparse} {tmp_path}/no.json": f"--full-heads {tmp_path}/no.json: ",
        f"{sparse} {file} --full-heads-share 2": f"--full-heads {file}: the share",
        "--attention-pattern heads.1full.3sink": "--attention-pattern: layer 1 of the attention pattern, h",
    }
    (answers,) = world.run(refusals, [*cases])
    for answer, expected in zip(answers, cases.values(), strict=True):
        assert answer.startswith(expected), answer

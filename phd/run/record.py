"""The record of a run: the format of phd_run.json and metrics.jsonl, for whoever writes or reads them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phd.rules.variant import Variant
from phd.run.arguments import Arguments
from phd.run.files import read_json, write_json
from phd.run.starts import arguments_by_iteration, with_start

RUN_FILE = "phd_run.json"
METRICS_FILE = "metrics.jsonl"
BRANCH_FILE = "branch.json"
"""The trunk of a branch (phd/run/branches.py), in its folder and as ``branch`` in its RUN_FILE."""

TRAIN_LOSS = "lm loss"
VALIDATION_LOSS = "lm loss validation"
ORIGINAL_LOSS = "lm loss original validation"  # what the original copy alone would have predicted
GRADIENT_NORM = "grad-norm"
LEARNING_RATE = "learning-rate"
THROUGHPUT = "phd/tokens-per-second"
TFLOPS = "phd/tflops-per-device"
MFU = "phd/mfu"
POSITION_REACH = "position reach"  # of samples with gaps between sentences: the largest position + 1, mean
ROPE_SCALE, ROPE_SHIFT = "phd/rope-scale", "phd/rope-shift"  # what E2-LLM drew for the iteration
DATA_SHARE = "phd/data-share"  # of the samples so far, from the data set web: phd/data-share-web
COPY_EMBEDDING_NORM = "phd/copy-embedding-norm"  # of copy 1: phd/copy-embedding-norm-1

TRAINED_IN_GROUPS = "+s2"
"""The end of a run's name, behind the variant's."""

type Line = dict[str, Any]
"""A line of metrics.jsonl: FIELDS and ``time``; numbers by their names, None where one was not finite; after
validations with --sample-prompts ``samples``, which are rows of ``prompt`` and ``text``.
"""

FIELDS = {"kind": str, "iteration": int, "tokens": int, "flops": int | float}
"""What every line has. ``kind`` is train, validation, test or samples."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What is read of phd_run.json, which says more for people."""

    name: str
    """The variant, as in the paper."""
    copies: int
    seed: int
    seq_length: int
    global_batch_size: int
    train_iters: int
    parameters: int
    flops_per_token: float
    arguments: Arguments | None
    """Megatron's arguments by their underscored names, those of the last start; None for a run that did not
    record them.
    """
    starts: tuple[tuple[int, Arguments], ...]
    """(iteration that it went on from, arguments) of every start, the first one first. Those of a branch hold
    its ``trunk`` too, and the digest of the checkpoint.
    """
    first_iteration: int = 0
    """Of a branch: the last one of its trunk."""
    first_tokens: int = 0
    """Of a branch: tokens that its trunk had seen."""


def run_name(arguments: Mapping[str, Any]) -> str:
    """What a run with these arguments is called: its variant, and how it trains."""
    return str(Variant.from_arguments(arguments)) + training_suffix(arguments)


def training_suffix(arguments: Mapping[str, Any]) -> str:
    """The end of a run's name where its layers see less in training than in validation, and than the exported
    model's.
    """
    return TRAINED_IN_GROUPS if arguments.get("s2_groups") else ""


def write_run_info(folder: Path, about: Mapping[str, Any], iteration: int) -> None:
    """Write phd_run.json as a start goes on from the checkpoint at ``iteration``; the starts before it stay.

    Args:
        about: the fields of :class:`RunInfo` but for ``starts``, and more.
    """
    file = folder / RUN_FILE
    write_json(file, with_start(about, read_json(file), iteration))


def read_run_info(run_file: Path) -> RunInfo:
    """Read a phd_run.json.

    Raises:
        ValueError: it is not what pretrain_phd.py writes.
    """
    try:
        about = json.loads(run_file.read_text(encoding="utf-8"))
        arguments = about.get("arguments")
        if not isinstance(arguments, dict | None):
            raise TypeError("arguments is not an object")
        train_iters = about["train_iters"]
        if arguments and train_iters is None:  # --train-samples, and Megatron has not counted yet
            train_iters = arguments["train_samples"] // about["global_batch_size"]
        branch = about.get("branch") or {}
        of_branch = {}
        if branch:
            of_branch = {
                "trunk": f"{branch['trunk']} at iteration {branch['iteration']}",
                "trunk_sha256": branch["checkpoint_sha256"],
            }
        return RunInfo(
            name=_variant_name(about["name"], arguments),
            copies=int(about["copies"]),
            seed=int(about["seed"]),
            seq_length=int(about["seq_length"]),
            global_batch_size=int(about["global_batch_size"]),
            train_iters=int(train_iters),
            parameters=int(about["parameters"]),
            flops_per_token=float(about["flops_per_token"]),
            arguments=None if arguments is None else arguments | of_branch,
            starts=tuple((first, {**its, **of_branch}) for first, its in arguments_by_iteration(about)),
            first_iteration=int(branch.get("iteration", 0)),
            first_tokens=int(
                branch.get(
                    "tokens",
                    branch.get("iteration", 0) * int(about["global_batch_size"]) * int(about["seq_length"]),
                )
            ),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{run_file} is not what pretrain_phd.py writes ({error!r})") from error


def _variant_name(name: Any, arguments: Arguments | None) -> str:
    """By the arguments where they say it: an older run's name may be silent on the size of its blocks."""
    if arguments is None or "phd_copies" not in arguments:
        return str(name)
    return run_name(arguments)


def line_text(line: Line) -> str:
    """``line`` as it stands in metrics.jsonl."""
    return json.dumps(line) + "\n"


def read_lines(path: Path) -> Iterator[Line]:
    """The whole lines of a metrics.jsonl, none where there is no such file; a last line that a kill has torn,
    or that is being written right now, is left out.

    Raises:
        ValueError: another line is not what pretrain_phd.py writes; names it.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
                _check(line)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {number} is not what pretrain_phd.py writes ({error!r})"
                ) from error
            yield line


def _check(line: Any) -> None:
    """Raise a TypeError, KeyError or AttributeError where ``line`` is not a Line."""
    lacking = {*FIELDS} - {*line}
    for row in line.get("samples", ()):
        lacking |= {"prompt", "text"} - {*row}
    if lacking:
        raise KeyError(*sorted(lacking))
    for name, value in line.items():
        if name != "samples" and not isinstance(value, FIELDS.get(name, int | float | None)):
            raise TypeError(f"{name} is {value!r}")


def last_records(path: Path) -> list[Line]:
    """The newest line of each kind."""
    newest = {line["kind"]: line for line in read_lines(path)}
    return [line for kind, line in newest.items() if kind in ("train", "validation")]

"""What tools/identity.py runs in each of the two checkouts: the cases, and how one checkout computes them.

    PYTHONPATH=CHECKOUT python -P tools/identity_worker.py CHECKOUT DATA OUTPUT CHECKPOINTS CASE ...

Of the checkout it uses what outlives a refactoring: ``pretrain_phd.py`` and its flags, metrics.jsonl, ``phd
export`` and the exported folder, which brings its own code. Every training is forked from this process, which
has imported Megatron once. OUTPUT/CASE/losses.npz and logits.npz hold the numbers, OUTPUT/CASE/log what was
said; a case that fails lacks one of the first two.
"""

import importlib
import importlib.util
import json
import math
import multiprocessing
import os
import re
import runpy
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

TRAINING = """
    --num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --group-query-attention
    --num-query-groups 2 --swiglu --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --untie-embeddings-and-output-weights --make-vocab-size-divisible-by 8 --init-method-std 0.1
    --attention-dropout 0 --hidden-dropout 0 --seq-length 40 --max-position-embeddings 40
    --micro-batch-size 2 --global-batch-size 4 --lr 2e-3 --lr-decay-style constant --clip-grad 1.0 --seed 7
    --train-iters 6 --eval-iters 1 --eval-interval 3 --log-interval 1 --save-interval 6
    --num-workers 0 --split 90,5,5 --tokenizer-type NullTokenizer --vocab-size 255
"""
SWA = "--phd-copies 2 --phd-window 5 --phd-chunk 0"
CSWA = "--phd-copies 3 --phd-window 5 --phd-chunk 12"
HYBRID = (
    "--attention-pattern sink,2*full,block-sparse --attention-pattern-block 4 "
    "--attention-pattern-local-blocks 2 --attention-pattern-stride 3"
)
PACKED = "--dataloader-inter-document-masking"
CONTEXT_PARALLEL = "--context-parallel-size 2"
RESPELLED = {HYBRID: "--attention-pattern 1sink.4.1.2-2full-1block-sparse.4.3.1"}
"""Words of the flags below -> the words for a checkout that does not know all flags among them."""


class Case(NamedTuple):
    """One training, and whether to export what it has learned."""

    flags: str
    ranks: int = 1
    logits: bool = False


CASES = {
    "vanilla": Case(""),
    "PHD-SWA-2": Case(SWA, logits=True),
    "PHD-CSWA-3": Case(CSWA, logits=True),
    "naive-2": Case("--phd-copies 2 --phd-naive"),
    "hybrid": Case(HYBRID, logits=True),
    "hybrid-2": Case(f"{SWA} {HYBRID}", logits=True),
    "packed-2": Case(f"{SWA} {PACKED}"),
    "hybrid-packed-2": Case(f"{SWA} {HYBRID} {PACKED}"),
    "CP2": Case(f"{SWA} {CONTEXT_PARALLEL}", ranks=2),
    "hybrid-CP2": Case(f"{SWA} {HYBRID} {CONTEXT_PARALLEL}", ranks=2),
}
OF_THE_CLOCK = ("time", "phd/tokens-per-second", "phd/tflops-per-device")
PROMPT, LENGTH = 17, 40
"""Columns that the exported model reads at once, and after the steps that follow one by one."""
TIMEOUT_S = 200


def spelled(flags: str, known: set[str]) -> list[str]:
    """The words of ``flags`` as a checkout that knows the flags ``known`` reads them."""
    for words, others in RESPELLED.items():
        if not set(flag_names(words)) <= known:
            flags = flags.replace(words, others)
    return shlex.split(flags)


def flag_names(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)


def forked(log: Path, job: Callable[..., Any], *arguments: Any, ranks: int = 1) -> bool:
    """Run ``job(*arguments)`` in so many processes, their output in ``log``; whether all went well."""
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_job, args=(log, rank, ranks, job, arguments)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT_S)
        process.kill()
        process.join()
    return all(process.exitcode == 0 for process in processes)


def _job(log: Path, rank: int, ranks: int, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(log.parent)
    if ranks > 1:  # as torchrun; MASTER_ADDR and MASTER_PORT are set
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        os.environ.update(WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    job(*arguments)


def pretrain(script: Path, flags: list[str]) -> None:
    sys.argv = [str(script), *flags]
    runpy.run_path(str(script), run_name="__main__")


def losses(record: Path, output: Path) -> None:
    """What the run has recorded of each kind of line: an array of doubles for each number."""
    import numpy as np

    series: dict[str, list[float]] = {}
    for line in map(json.loads, record.read_text().splitlines()):
        for name, value in line.items():
            if name != "kind" and name not in OF_THE_CLOCK:
                series.setdefault(f"{line['kind']} {name}", []).append(math.nan if value is None else value)
    arrays = {name: np.array(values, dtype=float) for name, values in series.items()}
    np.savez(output, allow_pickle=False, **arrays)


def export(checkpoint: Path, folder: Path) -> None:
    moved = importlib.util.find_spec("phd.commands") is not None
    cli = importlib.import_module("phd.commands.cli" if moved else "phd.cli")
    sys.exit(cli.main(["export", str(checkpoint), str(folder), "--no-tokenizer"]))


def logits(folder: Path, static: bool, output: Path) -> None:
    """Of an exported model: all columns as training computes them, with a gradient, and as inference does; a
    prompt and steps through its cache, of whole and of padded rows; with ``static`` the steps of ``generate``
    with a static cache, which sparse layers refuse.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids = torch.randint(0, 255, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    trained = model(ids, labels=ids)
    trained.loss.backward()
    found = {"to train": trained.logits.detach(), "gradient": model.get_input_embeddings().weight.grad}
    with torch.no_grad():
        found["at once"] = model(ids, use_cache=False).logits
        for name, seen in (("steps", None), ("padded steps", mask)):
            cache, parts = None, []
            for first, end in [(0, PROMPT), *((column, column + 1) for column in range(PROMPT, LENGTH))]:
                out = model(
                    ids[:, first:end],
                    attention_mask=None if seen is None else seen[:, :end],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = out.past_key_values
                parts.append(out.logits)
            found[name] = torch.cat(parts, dim=1)
        if static:
            out = model.generate(
                ids[:, :PROMPT], max_new_tokens=8, do_sample=False, cache_implementation="static",
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            found["static steps"] = torch.stack(out.logits, dim=1)
    np.savez(output, allow_pickle=False, **{name: tensor.numpy() for name, tensor in found.items()})


def run(name: str, known: set[str], checkout: Path, data: Path, output: Path, checkpoints: Path) -> bool:
    """Leave the numbers of a case in ``output``; whether it went well. The exported checkpoint is that of the
    same case in ``checkpoints``.
    """
    case, folder = CASES[name], output / name
    folder.mkdir()
    log, run_dir = folder / "log", folder / "run"
    flags = [*shlex.split(TRAINING), *spelled(case.flags, known), "--data-path", str(data)]
    if not forked(
        log, pretrain, checkout / "pretrain_phd.py", [*flags, "--run-dir", str(run_dir)], ranks=case.ranks
    ):
        return False
    losses(run_dir / "metrics.jsonl", folder / "losses.npz")
    if not case.logits:
        return True
    exported = folder / "exported"
    return forked(log, export, checkpoints / name / "run" / "checkpoints", exported) and forked(
        log, logits, exported, HYBRID not in case.flags, folder / "logits.npz"
    )


def main(arguments: list[str]) -> None:
    checkout, data, output, checkpoints = map(Path, arguments[:4])
    import pretrain_phd

    # isort: split
    import transformers.models.llama.modeling_llama  # noqa: F401 (once for all that is forked)

    import phd

    for module in (pretrain_phd, phd):
        if not Path(module.__file__ or "").is_relative_to(checkout):
            sys.exit(f"{module.__name__} was imported from {module.__file__}, not from {checkout}")
    forked(output / "help", pretrain, checkout / "pretrain_phd.py", ["--help"])
    # a line of the list of flags, not of the prose below one
    options = [line for line in (output / "help").read_text().splitlines() if line.startswith("  -")]
    known = set(flag_names("\n".join(options)))
    for name in arguments[4:]:
        begin = time.monotonic()
        well = run(name, known, checkout, data, output, checkpoints)
        print(
            f"{checkout}: {name}, {time.monotonic() - begin:.1f} s{'' if well else ', failed'}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(sys.argv[1:])

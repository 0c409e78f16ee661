"""The `phd` command: everything around pretraining; pretraining itself is pretrain_phd.py."""

import argparse
import importlib
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

FIRST_STEPS = """first steps:
  phd data train-tokenizer --input corpus.jsonl --output-prefix tokenizer --vocab-size 32000
  phd data tokenize --input corpus.jsonl --tokenizer-model tokenizer.model --output-prefix corpus --append-eod
  export DATA_PREFIX=corpus TOKENIZER_MODEL=tokenizer.model
  examples/pretrain.sh 300k PHD-CSWA-2-16-32      (in a clone)
  phd compare runs/300k --output comparison
  phd generate runs/300k/PHD-CSWA-2-16-32-seed1/checkpoints --prompt "Once upon a time"

`phd COMMAND --help` explains each command; `phd doctor` says what this machine has for it."""

# Each command is imported only when it is the one called: generate brings Megatron, which takes ten seconds.


def _add_data(parser: argparse.ArgumentParser) -> None:
    from data_tools.cli import add_subcommands
    from phd.commands import prepare

    commands = add_subcommands(parser)
    summary = "build Megatron's index caches before the job that trains"
    add = commands.add_parser("prepare", help=summary, description=summary)
    prepare.add_arguments(add)
    add.set_defaults(run=prepare.run)


def _from(module: str) -> Callable[[argparse.ArgumentParser], None]:
    """The command of a module that has ``add_arguments`` and ``run``."""

    def add(parser: argparse.ArgumentParser) -> None:
        command = importlib.import_module(module)
        command.add_arguments(parser)
        parser.set_defaults(run=command.run)

    return add


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "data": ("train a tokenizer, turn text into Megatron's .bin/.idx, inspect the result", _add_data),
    "plan": (
        "memory, FLOPs and parameters of a command line, before it is queued",
        _from("phd.commands.plan"),
    ),
    "branch": (
        "continue a run's checkpoint as several variants, on the same batches",
        _from("phd.commands.branch"),
    ),
    "doctor": (
        "what is installed, which devices there are, and what is missing",
        _from("phd.commands.doctor"),
    ),
    "variant": ("check the name of a variant, for scripts", _from("phd.commands.variant")),
    "status": (
        "how far a run is, how its last start ended, and whether to start it again",
        _from("phd.run.cli"),
    ),
    "compare": ("table and plot of the losses of finished or running runs", _from("phd.compare.cli")),
    "dashboard": (
        "curves, rates and samples of runs as a page or in Weights & Biases",
        _from("phd.compare.dashboard"),
    ),
    "export": ("a checkpoint of pretrain_phd.py as a Hugging Face folder", _from("phd.commands.export")),
    "merge": ("exported models as one, a mean of their weights", _from("phd.commands.merge")),
    "rope-base": ("the base of the rotary angles for a longer context", _from("phd.commands.rope_base")),
    "import": (
        "a Hugging Face folder of a Llama model as a checkpoint to train from",
        _from("phd.commands.importing"),
    ),
    "serve": (
        "an OpenAI-compatible server for an exported model, by transformers or vLLM",
        _from("phd.commands.serve"),
    ),
    "eval": (
        "tasks of EleutherAI's lm-evaluation-harness, or of a corpus at hand",
        _from("phd.evaluation.cli"),
    ),
    "generate": ("continue a text with an exported model or a checkpoint", _from("phd.commands.generate")),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; bad input is one line on stderr and status 2."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale may lack letters of a text, or of a path
    if argv[:1] == ["bench"]:
        print("phd bench: error: it is `python -m benchmarks.latency` now, in a clone", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(
        prog="phd",
        description=__doc__,
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"phd {version('pretrain-phd')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, add) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name in argv[:1]:
            add(subparser)
    if not argv:
        parser.print_help()
        return 0
    args = parser.parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 128 + signal.SIGPIPE
        print(f"phd {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"phd {args.command}: interrupted", file=sys.stderr)
        return 130


def _reader_is_gone() -> bool:
    """Whether it is the output that broke, as by `| head`, and not a pipe to a process of ours."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it would break again at the exit
    return True


if __name__ == "__main__":
    sys.exit(main())

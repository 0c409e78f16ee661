"""docs/*.md keep to the code: files, commands and flags that they name exist, messages are the code's."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from phd.commands.cli import COMMANDS
from tests.world import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
SUPPORT = ROOT / "docs" / "support.md"  # Megatron's flags: tests/test_readme.py holds it
FAILURES = ROOT / "docs" / "failures.md"
FOLDERS = ("examples", "phd", "tests", "tools", "docs", "benchmarks", "data_tools")
FILES = ("README.md", "CONTRIBUTING.md", "Makefile", "Dockerfile", "pretrain_phd.py", "constraints-cpu.txt")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*\w(?![\w-])")

# Flags of programs other than ours, which no parser of ours knows.
OTHERS = frozenset(
    {
        # sbatch, scancel, srun
        *("--signal", "--requeue", "--gres", "--exclude", "--exclusive", "--dependency"),
        # torchrun
        *("--max-restarts", "--signals-to-handle", "--shutdown-timeout", "--rdzv-id", "--local-addr"),
        # pip
        *("--no-deps", "--no-index", "--target", "--no-build-isolation"),
        # vLLM
        *("--tensor-parallel-size", "--block-size", "--additional-config", "--kv-cache-memory-bytes"),
        "--max-num-batched-tokens",
        # docker, tensorboard, wandb
        *("--gpus", "--ipc", "--ulimit", "--user", "--logdir", "--id"),
        # Megatron
        *("--save", "--load", "--save-interval", "--train-iters", "--ckpt-step", "--finetune"),
        *("--pretrained-checkpoint", "--override-opt-param-scheduler", "--distributed-timeout-minutes"),
        *("--data-cache-path", "--data-args-path", "--data-path", "--rerun-mode", "--error-injection-rate"),
        *("--async-save", "--no-check-for-nan-in-loss-and-grad", "--cuda-graph-impl", "--tp-comm-overlap"),
        *("--num-workers", "--check-for-spiky-loss", "--context-parallel-size", "--max-position-embeddings"),
        *("--dataloader-inter-document-masking", "--rotary-base", "--lr", "--lr-decay-iters", "--bf16"),
        *("--lr-decay-style", "--optimizer", "--attention-dropout", "--multiple-validation-sets"),
        *("--cp-comm-type", "--reset-attention-mask", "--rotary-seq-len-interpolation-factor"),
        *("--hidden-size", "--num-layers", "--seq-length", "--use-checkpoint-args", "--no-load-optim"),
        *("--no-load-rng", "--no-save-optim", "--no-save-rng", "--exit-on-missing-checkpoint"),
        *("--dist-ckpt-optim-fully-reshardable", "--use-distributed-optimizer"),
        "--distrib-optim-fully-reshardable-mem-efficient",
        *("--skip-train", "--ckpt-format", "--ckpt-convert-format", "--ckpt-convert-save"),
        *("--logits-load-dir", "--min-lr", "--pipeline-model-parallel-size", "--seed"),
        *(
            "--tensor-model-parallel-size",
            "--vocab-size",
            "--make-vocab-size-divisible-by",
            "--train-samples",
        ),
        *("--global-batch-size", "--tokenizer-model", "--tokenizer-type"),
        *("--micro-batch-size", "--recompute-granularity", "--recompute-method", "--recompute-num-layers"),
    }
)
# What our messages format: the words of the system, of Megatron, of torch.
FORMATTED = (
    "Read-only file system",
    "Disk quota exceeded",
    "it wants --min-lr <= --lr (--min-lr 0.1, --lr 0.002)",
    "No API key configured. Use `wandb login` to log in.",
    "Failed to get resume status for run e9c542a7: context deadline exceeded",
    "(host vm, pid 20947, since 2026-11-21 20:44:52)",
    "PHD-CSWA-2-16-32",
    "PHD-CSWA-3-16-32",
    "No module named 'einops'",
    "died 3",
)


def words(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_lines(text: str) -> Iterator[str]:
    """Lines of indented and of fenced code, stripped; a line that ends in a backslash with the next one."""
    fenced = False
    begun = ""
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            begun += line.strip()
            if begun.endswith("\\"):
                begun = begun[:-1]
                continue
            yield begun
            begun = ""


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"phd {command}")
    COMMANDS[command][1](parser)
    return parser


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def commands_of(command: str) -> dict[str, argparse.ArgumentParser]:
    """What follows `phd data`; nothing for the others."""
    for action in parser_of(command)._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def our_training_flags() -> set[str]:
    """Of pretrain_phd.py: Megatron makes them from the fields of our dataclasses, and is slow to ask."""
    flags = set()
    training = ("resume", "dataset", "e2_llm", "position_gaps", "full_heads")
    files = ("config", "run/config", *(f"training/{name}" for name in training))
    for file in (f"phd/{name}.py" for name in files):
        for node in ast.walk(ast.parse(words(ROOT / file))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id.replace("_", "-")
                flags |= {f"--{name}", f"--no-{name}"}
    return flags | {*re.findall(r'^ +"(--[a-z-]+)",$', words(ROOT / "phd/training/variant_flags.py"), re.M)}


def spoken_of(text: str) -> list[str]:
    """`phd COMMAND ...` in the text: whole lines of code, and what stands in backticks."""
    calls = [line for line in code_lines(text) if re.search(r"\bphd [a-z]", line)]
    calls += re.findall(r"`(?:\S*/)?(phd [a-z][^`]*)`", re.sub(r"\s*\n\s*", " ", text))
    return [re.sub(r"\s#.*", "", call[re.search(r"\bphd [a-z]", call).start() :]) for call in calls]  # type: ignore[union-attr]


@pytest.fixture(params=DOCS, ids=lambda path: path.name)
def doc(request) -> Path:
    return request.param


def test_links_lead_somewhere(doc):
    for target in re.findall(r"\]\(([^)#\s]+)", words(doc)):
        if "://" not in target:
            assert (doc.parent / target).exists(), target


def test_named_files_exist(doc):
    named = re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", words(doc))
    named += re.findall(rf"(?<![\w/])({'|'.join(map(re.escape, FILES))})\b", words(doc))
    for path in named:
        assert (ROOT / path).exists(), path


def test_named_modules_exist(doc):
    for module in re.findall(r"python -m ([\w.]+)", words(doc)):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def names_of(module: Path) -> set[str]:
    """What a module defines and imports at its top, without importing it."""
    names = set()
    waiting = [*ast.parse(words(module)).body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If):
            waiting += [*node.body, *node.orelse]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(
    "page", [*DOCS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_named_python_names_exist(page):
    """phd.package.module.name, and what code imports from such a module."""
    named = {tuple(name.split(".")) for name in re.findall(r"(?<![\w.])phd(?:\.\w+)+", words(page))}
    for module, imported in re.findall(r"from (phd[.\w]*) import ([\w, ]+)", words(page)):
        named |= {(*module.split("."), name.strip()) for name in imported.split(",")}
    for parts in named:
        path = ROOT
        rest = list(parts)
        while rest and ((path / rest[0]).is_dir() or (path / f"{rest[0]}.py").is_file()):
            path = path / rest.pop(0)
        module = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert not rest or ".".join(rest) in names_of(module), ".".join(parts)


def test_named_commands_exist(doc):
    for call in spoken_of(words(doc)):
        _, command, *rest = call.split()
        assert command in COMMANDS, call
        if (known := commands_of(command)) and rest and re.fullmatch("[a-z-]+", rest[0]):
            assert rest[0] in known, call


def test_flags_of_commands_exist(doc):
    """Each command takes the flags that the documents give it; what follows two dashes is not its own."""
    for call in spoken_of(words(doc)):
        _, command, *rest = call.split(" -- ")[0].split()
        if "pretrain_phd.py" in rest:
            rest = rest[: rest.index("pretrain_phd.py")]
        known = commands_of(command)
        parser = known.get(rest[0]) if known and rest else parser_of(command)
        given = set(FLAG.findall(" ".join(rest)))
        assert parser is not None or not given, call
        assert parser is None or given <= flags_of(parser), (call, given - flags_of(parser))


def test_every_flag_is_known(doc):
    known = OTHERS | our_training_flags()
    for command in [*COMMANDS]:
        if command == "data" or re.search(rf"\bphd {command}\b", words(doc)):
            for parser in [parser_of(command), *commands_of(command).values()]:
                known |= flags_of(parser)
    for path in [*(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        known |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', words(path)))
    unknown = {flag for flag in FLAG.findall(words(doc)) if flag not in known}
    assert doc == SUPPORT or not unknown


def test_variables_of_the_scripts_exist(doc):
    """VARIABLE=... in front of one of our scripts is read by one of them."""
    scripts = "".join(words(path) for path in (ROOT / "examples").rglob("*.sh"))
    theirs = re.compile("SBATCH_|WANDB_MODE|HOME")  # sbatch's, wandb's and everybody's own
    for line in code_lines(words(doc)):
        if "examples/" in line:
            for name in re.findall(r"\b([A-Z][A-Z_]+)=", line.split("examples/")[0]):
                assert theirs.match(name) or re.search(rf"\b{name}\b", scripts), name


def literals() -> list[str]:
    """The texts of the sources, those between what an f-string formats one by one, longest first. Adjacent
    literals are one to Python's parser.
    """
    found = set()
    for path in [ROOT / "pretrain_phd.py", *(ROOT / "phd").rglob("*.py")]:
        for node in ast.walk(ast.parse(words(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value.strip("\n"))
    return sorted((text for text in found if len(text) >= 5), key=len, reverse=True)


def quoted() -> list[str]:
    """The messages of ours: `pretrain_phd.py: error:`, `> ...`, and what `phd status` says of RUN."""
    lines = [re.sub(r"\s+", " ", line) for line in code_lines(words(FAILURES))]
    return [line for line in lines if re.match(r"pretrain_phd\.py: error:|> |RUN: ", line)]


def test_messages_are_quoted():
    assert len(quoted()) > 15


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_in_the_source(message, all_literals):
    """Every word of it is of a text in the sources, one of which has 20 letters or more, or is known to be
    variable.
    """
    rest = re.sub(r"^(pretrain_phd\.py: error: (rank \d+: )?|RUN: )", "", message)
    for text in FORMATTED:
        rest = rest.replace(text, "|")
    found = []
    for text in all_literals:
        if text in rest:
            found.append(text)
            rest = rest.replace(text, "|")
    assert found and len(found[0]) >= 20, message
    assert not re.findall(r"(?<![\w/.-])[a-z]{4,}(?![\w/.])", rest), rest


@pytest.fixture(scope="module")
def all_literals() -> list[str]:
    return literals()

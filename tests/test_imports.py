"""Dependencies point one way; CONTRIBUTING.md says which. Nothing is imported here, the source is read."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_NAME_PRIVATE = {"phd/megatron/compat.py", "phd/megatron/cpu.py", "phd/megatron/loop.py"}
# What each part may import of this repository and of Megatron; the longest matching path decides.
ALLOWED = {
    "phd": {"phd"},
    "phd/rules": {"phd.rules"},
    "phd/old_flags.py": {"phd.rules"},
    "phd/attention": {"phd.attention", "phd.rules"},
    "phd/megatron": {"phd.attention", "phd.rules", "phd.megatron", "phd.config", "megatron"},
    "phd/checkpoint": {"phd.checkpoint", "phd.run", "megatron"},
    "phd/checkpoint/growth.py": {"phd.checkpoint", "phd.megatron", "phd.rules", "megatron"},
    "phd/checkpoint/__init__.py": {"phd.megatron"},  # it prepares torch before Megatron is imported
    "phd/training": {
        *("phd.attention", "phd.megatron", "phd.checkpoint", "phd.training", "phd.run"),
        *("phd.config", "phd.old_flags", "phd.rules", "megatron"),
    },
    "phd/run": {"phd.run", "phd.rules"},
    "phd/hf": {"phd.attention", "phd.hf", "phd.rules"},
    "phd/config.py": {"phd.attention", "phd.rules"},
    "phd/compare": {"phd.compare", "phd.run", "phd.rules"},
    "phd/vllm": {"phd.attention", "phd.hf", "phd.rules", "phd.vllm"},
    "phd/serving": {"phd.hf", "phd.serving"},
    "phd/commands": {"phd"},
    "phd/commands/importing.py": {"phd", "megatron"},
    "phd/commands/plan.py": {"phd", "megatron"},
    "phd/commands/prepare.py": {"phd", "megatron"},
    "phd/commands/cli.py": {"phd.commands", "data_tools"},
    "phd/loading.py": {"phd.checkpoint", "phd.hf", "phd.rules", "phd.quiet"},
    "phd/quiet.py": set(),
    "pretrain_phd.py": {"phd", "megatron"},
    "data_tools": {"data_tools"},
}
OURS = {"phd", "data_tools", "megatron", "pretrain_phd", "examples", "benchmarks", "tests"}


def source_files(*below: str) -> list[str]:
    """All, or those below these folders."""
    files = [ROOT / "pretrain_phd.py", *ROOT.glob("phd/**/*.py"), *ROOT.glob("data_tools/**/*.py")]
    names = sorted(str(file.relative_to(ROOT)) for file in files)
    found = [name for name in names if name.startswith(below or "")]
    assert len(found) > 5
    return found


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(file: str) -> Iterator[str]:
    """Full dotted names that a file imports, at its top or inside a function."""
    for node in ast.walk(parse(ROOT / file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(files: list[str]) -> set[tuple[str, str]]:
    """(file, package that it imports)."""
    return {(file, name.partition(".")[0]) for file in files for name in imports(file)}


def others(files: list[str], *allowed: str) -> list[tuple[str, str]]:
    """Of these, those beyond the standard library and ``allowed``."""
    known = {*sys.stdlib_module_names, *allowed}
    return sorted((file, name) for file, name in packages(files) if name not in known)


def within(name: str, packages: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def allowed_for(file: str) -> set[str]:
    parts = file.split("/")
    prefixes = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next(ALLOWED[prefix] for prefix in prefixes if prefix in ALLOWED)


def test_imports_point_one_way():
    wrong = [
        (file, name)
        for file in source_files()
        for name in imports(file)
        if within(name, OURS) and not within(name, allowed_for(file))
    ]
    assert wrong == []


def test_attention_needs_torch_only():
    """The Hugging Face export copies these files out of the repository, and a GPU kernel may need Triton."""
    assert others(source_files("phd/attention/"), "torch", "triton", "phd") == []


def test_rules_need_the_standard_library_only():
    """Whoever asks for a name or a cost waits for nothing."""
    assert others(source_files("phd/rules/"), "phd") == []


def test_run_folders_are_read_without_torch():
    """phd status and phd compare would wait for it."""
    found = packages(source_files("phd/run/", "phd/compare/"))
    assert [file for file, name in found if name == "torch"] == []


def private_names(path: Path, package: str) -> Iterator[str]:
    """Names of ``package`` that begin with an underscore, imported or reached through an imported name."""
    tree = parse(path)
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {alias.asname or package for alias in node.names if within(alias.name, {package})}
        elif isinstance(node, ast.ImportFrom) and within(node.module or "", {package}):
            bound |= {alias.asname or alias.name for alias in node.names}
            yield from (alias.name for alias in node.names if is_private(alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in bound:
                yield ast.unparse(node)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_names_of_megatron_stay_in_compat():
    files = [file for file in source_files() if file not in MAY_NAME_PRIVATE]
    found = {file: [*private_names(ROOT / file, "megatron")] for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from megatron.core.utils import _private",
        "import megatron.core\nmegatron.core.utils._private()",
        "import megatron.core.utils as utils\nutils._private = None",
        "def f():\n    from megatron.core import utils\n    utils.inner._private.name",
    ],
)
def test_private_names_are_found(source, tmp_path):
    (tmp_path / "file.py").write_text(source)
    assert list(private_names(tmp_path / "file.py", "megatron"))


def test_every_part_is_there():
    """A renamed folder must not leave its rule behind, matching nothing."""
    assert [path for path in ALLOWED if not (ROOT / path).exists()] == []

"""The picture of the packages: as the script draws it, and true."""

import ast
from pathlib import Path

import pytest

from tests.world import ROOT
from tools.draw_house import ARROWS, OUTPUT, ROWS, picture


def imported(path: Path) -> set[str]:
    """Modules that the sources below a package, or one file, import."""
    found = set()
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
            elif isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
    return found


def test_the_file_is_what_the_script_draws():
    assert OUTPUT.read_text(encoding="utf-8") == picture()


@pytest.mark.parametrize(("lower", "upper"), ARROWS)
def test_arrows_are_imports(lower, upper):
    module = lower.removesuffix(".py").replace("/", ".")
    names = imported(ROOT / upper)
    # commands are imported by name, when they are called
    text = (ROOT / "phd" / "commands" / "cli.py").read_text(encoding="utf-8")
    called = upper == "phd/commands" and f'_from("{module}' in text
    assert called or any(name == module or name.startswith(f"{module}.") for name in names)


def test_nothing_is_imported_from_above():
    order = [name for row in ROWS for _, name, _ in row]
    assert all(order.index(lower) > order.index(upper) for lower, upper in ARROWS)

"""Which Python `make setup` takes, on machines made of a few fake commands."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "find_python.sh"


def fake(path: Path, script: str) -> Path:
    """A command that behaves as ``script`` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def real(path: Path) -> Path:
    """This very Python under another name."""
    return fake(path, f'exec "{sys.executable}" "$@"')


def find(home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(home / "bin"), "HOME": str(home)} | env
    return subprocess.run(["/bin/sh", SCRIPT], env=env, capture_output=True, text=True)


def old(path: Path) -> Path:
    """A Python that is too old: whatever it is asked to check, it says no."""
    return fake(path, "exit 1")


@pytest.mark.parametrize("name", ["python3.12", "python3.13", "python3.14", "python3", "python"])
def test_found_on_the_path(tmp_path, name):
    real(tmp_path / "bin" / name)
    assert find(tmp_path).stdout.strip() == sys.executable


def test_shim_that_only_fails_is_passed_over(tmp_path):
    fake(tmp_path / "bin" / "python3.12", "echo 'pyenv: python3.12: command not found'; exit 127")
    old(tmp_path / "bin" / "python3")
    real(tmp_path / ".pyenv" / "versions" / "3.12.1" / "bin" / "python")
    assert find(tmp_path).stdout.strip() == sys.executable


def test_pyenv_elsewhere(tmp_path):
    old(tmp_path / "envs" / "versions" / "3.11.7" / "bin" / "python")
    real(tmp_path / "envs" / "versions" / "3.13.0" / "bin" / "python")
    assert find(tmp_path, PYENV_ROOT=str(tmp_path / "envs")).stdout.strip() == sys.executable


def test_none_found(tmp_path):
    old(tmp_path / "bin" / "python3")
    result = find(tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "No Python 3.12 or newer" in result.stderr
    assert "make setup PYTHON=" in result.stderr


def test_named_python_is_taken(tmp_path):
    fake(tmp_path / "bin" / "python3.12", "echo wrong")
    named = real(tmp_path / "mine")
    assert find(tmp_path, PYTHON=str(named)).stdout.strip() == sys.executable


def test_named_python_too_old(tmp_path):
    real(tmp_path / "bin" / "python3.12")
    result = find(tmp_path, PYTHON=str(old(tmp_path / "mine")))
    assert result.returncode == 1
    assert f"PYTHON={tmp_path}/mine is not a Python 3.12 or newer" in result.stderr


def test_check_refuses_an_older_version(tmp_path):
    """The version test itself, on this Python with its version number turned down."""
    pretend = "import sys; sys.version_info = (3, 11, 7); exec(sys.argv.pop(1))"
    fake(tmp_path / "bin" / "python3.12", f'shift; exec "{sys.executable}" -c \'{pretend}\' "$@"')
    assert find(tmp_path).returncode == 1

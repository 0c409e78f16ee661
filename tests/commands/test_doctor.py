"""`phd doctor`: what it says of this machine, and of machines that lack something."""

import platform
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from phd.commands import doctor
from phd.commands.cli import main


def test_this_machine(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert platform.python_version() in out
    for name in doctor.PACKAGES:
        assert f"  {name} {version(name)}\n" in out
    assert "CPU: " in out and " GiB of memory" in out
    assert ("GPU 0: " in out) == torch.cuda.is_available()
    assert "lm-evaluation-harness: found, serves phd eval" in out
    assert "torchrun: /" in out  # that of the environment, whatever the shell's path is


def test_a_missing_package_is_an_error(monkeypatch, capsys):
    def without_torch(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", without_torch)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "  torch is missing: pip install pretrain-phd\n" in out
    assert err == "phd doctor: torch missing: pip install pretrain-phd\n"


@pytest.mark.parametrize("part", doctor.PARTS, ids=lambda part: part.module)
def test_parts(part, monkeypatch):
    """Found or not, with a GPU or without: who lacks it reads what that means, and what to do."""
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == part.module)
    assert doctor.about(part, gpu=True) == f"{part.name}: found, serves {part.serves}"
    assert doctor.about(part, gpu=False).endswith("on a GPU alone") == part.gpu
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    text = doctor.about(part, gpu=True)
    assert part.without in text and part.remedy in text
    assert ("of no use without a GPU" in doctor.about(part, gpu=False)) == part.gpu


def test_alone_the_command_shows_the_way(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "first steps:" in out and "phd doctor" in out

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from phd import cli


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"phd {version('pretrain-phd')}\n"


def test_console_script_is_installed():
    phd = Path(sys.executable).with_name("phd")
    run = subprocess.run([phd, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"phd {version('pretrain-phd')}\n"


@pytest.mark.parametrize("command", [[], ["data"], ["compare"], ["generate"]], ids=" ".join)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert exit_.value.code == 0
    assert "usage: phd" in capsys.readouterr().out


def test_help_imports_no_command():
    code = (
        "import sys; from phd.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'megatron', 'matplotlib', 'tensorboard', 'sentencepiece', 'data_tools'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("argv", [[], ["nonsense"]], ids=["none", "unknown"])
def test_no_such_command(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path, capsys):
    assert cli.main(["compare", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("phd compare: error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("bad --flag"), 2, "phd compare: error: bad --flag\n"),
        (KeyboardInterrupt(), 130, "phd compare: interrupted\n"),
    ],
    ids=["value-error", "interrupted"],
)
def test_errors_become_exit_status(error, status, line, monkeypatch, capsys):
    def fail(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "compare", ("", lambda parser: parser.set_defaults(run=fail)))
    assert cli.main(["compare"]) == status
    assert capsys.readouterr().err == line

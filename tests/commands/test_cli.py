import argparse
import contextlib
import errno
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from phd.commands import cli
from phd.run.status import UNFINISHED, RunStatus


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
        "import sys; from phd.commands.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'megatron', 'matplotlib', 'tensorboard', 'sentencepiece', 'data_tools'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_no_such_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["nonsense"])
    assert exit_.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_bench_is_elsewhere(capsys):
    assert cli.main(["bench", "latency", "--rounds", "3"]) == 2
    error = capsys.readouterr().err
    assert "python -m benchmarks.latency" in error and error.count("\n") == 1


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


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough(unbuffered, tmp_path):
    """As head: no message, and the exit status of a process that SIGPIPE ends."""
    RunStatus(tmp_path, tmp_path).started(100, "pretrain_phd.py")
    command = [Path(sys.executable).with_name("phd"), "status", tmp_path]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_broken_pipe_to_another_process(monkeypatch, tmp_path):
    def fail(args: argparse.Namespace) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setitem(cli.COMMANDS, "compare", ("", lambda parser: parser.set_defaults(run=fail)))
    with (tmp_path / "output").open("w") as output, contextlib.redirect_stdout(output):
        assert cli.main(["compare"]) == 2


def test_letters_that_the_locale_lacks(tmp_path):
    folder = tmp_path / "söder"
    folder.mkdir()
    RunStatus(folder, folder).started(100, "pretrain_phd.py")
    done = subprocess.run(
        [Path(sys.executable).with_name("phd"), "status", folder],
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (UNFINISHED, "")
    assert r"s\xf6der: running" in done.stdout

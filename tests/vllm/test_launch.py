"""`phd serve --engine vllm` up to the moment when the process becomes vLLM's."""

import json
import re
import shlex
import stat
from pathlib import Path

import pytest

from phd.commands.cli import main
from phd.vllm import launch


def fake_python(folder: Path, prints: str) -> Path:
    """An environment whose python says ``prints``, whatever it is asked."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nprintf '{prints}'\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def test_becomes_the_server_on_loopback(tiny_folder, tmp_path, monkeypatch, capsys):
    python = fake_python(tmp_path / "venv", "0.32.0+cpu\\n1\\n")
    monkeypatch.setattr(launch, "ENVIRONMENT", tmp_path / "venv")
    calls = []

    def become(*call):
        calls.append(call)
        raise SystemExit(0)

    monkeypatch.setattr(launch.os, "execv", become)
    words = ["--engine", "vllm", "--port", "8001", "--vllm-flags=--tensor-parallel-size 2"]
    with pytest.raises(SystemExit):
        main(["serve", str(tiny_folder), *words])
    ((program, command),) = calls
    assert program == python and command[:3] == [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    flags = dict(zip(command[3::2], command[4::2], strict=True))
    assert int(flags.pop("--kv-cache-memory-bytes")) > 1 << 20
    assert flags == {
        "--model": str(tiny_folder), "--host": "127.0.0.1", "--port": "8001", "--dtype": "auto",
        "--tensor-parallel-size": "2",
    }  # fmt: skip
    *_, url, header, value, data, request = shlex.split(capsys.readouterr().out)
    assert (url, header, data) == ("http://127.0.0.1:8001/v1/completions", "-H", "-d")
    assert value == "Content-Type: application/json" and json.loads(request)["model"] == str(tiny_folder)


def test_memory_is_the_user_s_to_choose(tmp_path):
    command = launch.server_command(tmp_path, tmp_path, "::1", 1, "auto", ["--gpu-memory-utilization=0.5"], 7)
    assert "--kv-cache-memory-bytes" not in command


@pytest.mark.parametrize(
    ("prints", "words"),
    [
        (None, "there is no vLLM here: run `make serve-vllm`"),
        ("none\\n0\\n", "has no vLLM: run `make serve-vllm`"),
        ("0.33.1\\n1\\n", "has vLLM 0.33.1, phd needs 0.32: run `make serve-vllm`"),
        ("0.32.0\\n0\\n", "does not know phd: .* -m pip install --no-deps --editable"),
    ],
)
def test_no_vllm_to_serve_with(tmp_path, monkeypatch, prints, words):
    monkeypatch.setattr(launch, "ENVIRONMENT", tmp_path / "venv")
    if prints is not None:
        fake_python(tmp_path / "venv", prints)
    with pytest.raises(ValueError, match=f"--engine vllm: .*{words}"):
        launch.find_vllm()


def test_refused_before_vllm_is_looked_for(tiny_folder, make_model, tmp_path, capsys):
    """Each ends in one line that names what is wrong and the remedy."""
    swa = tmp_path / "swa"
    make_model("PHD-SWA-2-5-inf").save_pretrained(swa)
    (swa / "tokenizer_config.json").write_text("{}")
    torn, later = tmp_path / "torn", tmp_path / "later"
    for folder in (torn, later):
        folder.mkdir()
        for file in tiny_folder.iterdir():
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = json.loads((later / "config.json").read_text())
    (later / "config.json").write_text(json.dumps(config | {"phd_config_version": 9}))
    capsys.readouterr()  # what saving has printed
    for words, message in (
        ([swa], "PHD-SWA-2-5-inf: without chunks"),
        ([torn], "model.safetensors is torn"),
        ([later], "phd_config_version 9"),
        ([tiny_folder, "--device", "cuda"], "--device cuda: vLLM takes the device.*leave it out"),
        ([tiny_folder, "--vllm-flags=it's"], "--vllm-flags it's: No closing quotation"),
    ):
        assert main(["serve", *map(str, words), "--engine", "vllm"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and re.search(message, error), error
    assert main(["serve", str(tiny_folder), "--vllm-flags=--x"]) == 2
    assert "--vllm-flags: flags of vLLM's server, which --engine vllm starts" in capsys.readouterr().err

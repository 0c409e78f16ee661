"""`phd serve`: transformers' server answers for a PHD model, on loopback alone, and ends on Ctrl-C."""

import json
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phd.commands import serve
from tools.ports import held_ports

PATIENCE_S = 300
"""A server that takes longer to start or to end hangs."""


def arguments(model: Path, port: int) -> Namespace:
    settings = {"device": "cpu", "dtype": "auto", "engine": "transformers", "vllm_flags": ""}
    return Namespace(model=model, host="127.0.0.1", port=port, **settings)


def command(log: str, words: list[str]) -> None:
    """`phd WORDS` of a process that has torch and transformers imported; its output goes to ``log``."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from phd.commands.cli import main

    sys.exit(main(words))


def test_answers_until_it_is_interrupted(tiny_folder, forks, tmp_path):
    """A folder with an @ in its name, which is refused with a remedy, by that remedy."""
    named = shutil.copytree(tiny_folder, tmp_path / "model@1")
    with pytest.raises(ValueError, match="no folder with an @ in its name: give it by a link"):
        serve.run(arguments(named, 8000))
    folder, log = tmp_path / "model", tmp_path / "log"
    folder.symlink_to(named)
    with held_ports(1) as (port,):
        words = ["serve", str(folder), "--port", str(port), "--device", "cpu"]
        process: Any = forks.Process(target=command, args=(str(log), words))
        process.start()
        try:
            assert_answers(folder, port, str(process.pid), process.is_alive)
        finally:
            os.kill(process.pid, signal.SIGINT)
            process.join(PATIENCE_S)
            process.kill()
    output = log.read_text()
    assert process.exitcode >= 0 and "Traceback" not in output
    assert f"http://127.0.0.1:{port}/v1/completions, model {folder}" in output


def assert_answers(folder: Path, port: int, process: str, alive: Callable[[], bool]) -> None:
    """With the model's likeliest tokens, to this machine alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import phd.hf  # noqa: F401

    request = {"model": str(folder), "prompt": "the time", "max_tokens": 6, "temperature": 0}
    answer = ask(f"http://127.0.0.1:{port}/v1/completions", request, alive)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("the time", return_tensors="pt", add_special_tokens=False)["input_ids"]
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert answer["choices"][0]["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    with open(f"/proc/{process}/net/tcp") as file:
        listening = [line.split()[1] for line in file if f":{port:04X} 00000000:0000 0A" in line]
    assert listening == [f"0100007F:{port:04X}"]


def ask(url: str, content: dict, alive: Callable[[], bool]) -> dict:
    """POST, as soon as somebody listens."""
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    deadline = time.monotonic() + PATIENCE_S
    while alive() and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                return json.load(response)
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the server ended" if not alive() else "the server did not start")


@pytest.mark.parametrize(
    ("port", "message"), [(0, "--port must be from 1 to 65535"), (8000, "is not a Hugging Face folder")]
)
def test_refused(tmp_path, port, message):
    with pytest.raises(ValueError, match=message):
        serve.run(arguments(tmp_path, port))

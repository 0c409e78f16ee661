"""`phd serve`: transformers' server answers for a PHD model, on loopback alone, and ends on Ctrl-C."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from argparse import Namespace

import pytest

from phd import serve
from tests.world import ROOT, free_port


@pytest.mark.slow
def test_completions(tiny_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import phd.hf  # noqa: F401

    port = free_port()
    command = [
        sys.executable,
        "-m",
        "phd.cli",
        "serve",
        str(tiny_folder),
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    request = {"model": str(tiny_folder), "prompt": "the time", "max_tokens": 6, "temperature": 0}
    try:
        answer = ask(f"http://127.0.0.1:{port}/v1/completions", request, process)
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
        ids = tokenizer("the time", return_tensors="pt", add_special_tokens=False)["input_ids"]
        expected = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert answer["choices"][0]["text"] == tokenizer.decode(expected, skip_special_tokens=True)
        sockets = (f"/proc/{process.pid}/net/tcp", "0100007F:")
        with open(sockets[0]) as file:
            listening = [line.split()[1] for line in file if f":{port:04X} 00000000:0000 0A" in line]
        assert listening == [f"{sockets[1]}{port:04X}"]
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert "Traceback" not in output
    assert f"http://127.0.0.1:{port}/v1/completions" in output


def ask(url: str, content: dict, process: subprocess.Popen) -> dict:
    """POST, as soon as somebody listens."""
    data = json.dumps(content).encode()
    for _ in range(240):
        assert process.poll() is None, process.communicate()[0]
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError("the server did not start")


@pytest.mark.parametrize(
    ("port", "message"), [(0, "--port must be from 1 to 65535"), (8000, "is not a Hugging Face folder")]
)
def test_refused(tmp_path, port, message):
    with pytest.raises(ValueError, match=message):
        serve.run(Namespace(model=tmp_path, host="127.0.0.1", port=port, device="cpu", dtype="auto"))

"""benchmarks/serving.py counts what servers answer, and divides what ran in the same round."""

import contextlib
import json
import time
from http.server import BaseHTTPRequestHandler

import pytest

from benchmarks import serving
from tests.http_server import answered_by
from tests.models import ENGLISH, cache_bytes


class Streams(BaseHTTPRequestHandler):
    """As many tokens as are asked for, the first after ``wait`` seconds; remembers the prompts."""

    wait = 0.02
    prompts: list[str] = []

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.prompts.append(body["prompt"])
        self.send_response(200)
        self.end_headers()
        time.sleep(self.wait)
        for _ in range(body["max_tokens"]):
            self.wfile.write(b'data: {"choices": [{"text": "a"}]}\n\n')
        usage = json.dumps({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        self.wfile.write(f"data: {usage}\n\ndata: [DONE]\n\n".encode())


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(Streams, "prompts", [])
    with answered_by(Streams) as url:
        yield url


def test_rates_of_a_server(url):
    rates = serving.measure(url, "model", ["one", "two", "three", "four"], 5, clients=2)
    assert sorted(Streams.prompts) == ["four", "one", "three", "two"]
    assert rates.tokens_per_s == pytest.approx(5 * rates.requests_per_s)
    assert 0 < rates.requests_per_s <= 2 / Streams.wait and rates.first_token_s >= Streams.wait


def test_report(url, make_model, tmp_path, monkeypatch, capsys):
    """Each engine beside transformers', each folder beside the first, and their caches."""
    folders, text, output = [tmp_path / "one", tmp_path / "two"], tmp_path / "text", tmp_path / "out.json"
    for folder, variant in zip(folders, ("vanilla", "PHD-CSWA-3-5-12"), strict=True):
        make_model(variant).save_pretrained(folder)
    text.write_text(ENGLISH * 3)
    monkeypatch.setattr(serving, "server", lambda *_: contextlib.nullcontext(url))
    flags = (
        f"--text {text} --clients 1 2 --requests 1 --prompt-words 6 --tokens 3 --rounds 2 --output {output}"
    )
    assert serving.main([*map(str, folders), *flags.split(), "--cache-length", "64"]) == 0
    assert json.loads(capsys.readouterr().out) == (report := json.loads(output.read_text()))
    assert {(x["folder"], x["engine"], x["clients"]) for x in report["rates"]} == {
        (folder, engine, clients)
        for folder in ("one", "two")
        for engine in serving.ENGINES
        for clients in (1, 2)
    }
    for row in report["rates"]:
        assert row["folder"] == "two" or row["tokens_per_s_of_first_folder"] == 1
        assert row["engine"] == "vllm" or row["tokens_per_s_of_transformers"] == 1
    caches = report["caches"]["two"]
    assert caches["kv_bytes"] == cache_bytes(make_model("PHD-CSWA-3-5-12").config, 64)
    assert caches["naive_kv_bytes"] == 3 * report["caches"]["one"]["kv_bytes"]


def test_too_little_text(tmp_path):
    (tmp_path / "text").write_text("a few words")
    with pytest.raises(ValueError, match="--text .* has 3 words, 200 are needed"):
        serving.main(["model", "--text", str(tmp_path / "text")])

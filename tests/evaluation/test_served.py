"""The harness's numbers from a server are those of the model that it runs, and its refusals are one line."""

import json
import random
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from phd.commands.cli import main
from phd.evaluation.served import ServedLM, Server
from tests.evaluation.test_harness import expected, tokenizer  # noqa: F401 (a fixture)
from tests.http_server import answered_by
from tests.models import VOCABULARY

VARIANT = "PHD-CSWA-3-5-12+vector"
FOLDER = Path("/models/served")


class Answers(BaseHTTPRequestHandler):
    """As vLLM's server, of ``model``; ``nan`` as it does where hidden copies did not run."""

    model: Any = None
    nan = False

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer({"data": [{"id": str(FOLDER), "max_model_len": 66}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == str(FOLDER) and body["temperature"] == 0
        if self.nan:
            self.answer({"error": {"message": "Out of range float values are not JSON compliant: nan"}}, 400)
            return
        ids = body["prompt"]
        with torch.no_grad():
            scores = self.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        if "prompt_logprobs" not in body:
            likeliest = int(scores[-1].argmax())
            self.answer({"choices": [{"text": f"t{likeliest} {body['max_tokens']} {body['stop']}"}]})
            return
        found: list = [None]
        for row, token in zip(scores, ids[1:], strict=False):
            rank = int((row > row[token]).sum()) + 1
            found.append({str(token): {"logprob": float(row[token]), "rank": rank}})
        self.answer({"choices": [{"prompt_logprobs": found}]})


@pytest.fixture
def url(make_model, monkeypatch) -> Iterator[str]:
    monkeypatch.setattr(Answers, "model", make_model(VARIANT))
    with answered_by(Answers) as url:
        yield url


@pytest.fixture
def lm(url, make_model, tokenizer) -> ServedLM:  # noqa: F811
    return ServedLM(make_model(VARIANT), tokenizer, Server(url, FOLDER))


def test_same_as_whole_sequences(lm, make_model):
    draw = random.Random(0)
    questions = []
    for length in (1, 5, 17, 30):
        context = [draw.randrange(1, VOCABULARY) for _ in range(length)]
        with torch.no_grad():
            likeliest = int(make_model(VARIANT)(torch.tensor([context])).logits[0, -1].argmax())
        questions += [(context, [3, 7, 9, 11]), (context, [likeliest])]
    answers = lm._loglikelihood_tokens([(("", ""), *question) for question in questions], disable_tqdm=True)
    for question, (score, greedy) in zip(questions, answers, strict=True):
        wanted, is_greedy = expected(make_model(VARIANT), *question)
        assert score == pytest.approx(wanted, abs=1e-4) and greedy == is_greedy
    assert any(greedy for _, greedy in answers)


def test_generates_until_a_stop(lm, make_model):
    request = Instance("generate_until", {}, ("t3 t4", {"until": ["t9"], "max_gen_toks": 5}), 0)
    (text,) = lm.generate_until([request], disable_tqdm=True)
    with torch.no_grad():
        ids = torch.tensor([lm.tok_encode("t3 t4")])
        likeliest = int(make_model(VARIANT)(ids).logits[0, -1].argmax())
    assert text.startswith(f"t{likeliest} 5 ['t9'")


def test_too_long_for_the_server(lm):
    """66 positions, of which vLLM wants one for an answer."""
    lm._loglikelihood_tokens([(("", ""), [1] * 60, [2] * 5)], disable_tqdm=True)
    with pytest.raises(Exception) as error:
        lm._loglikelihood_tokens([(("", ""), [1] * 61, [2] * 5)], disable_tqdm=True)
    assert error.value.args == (0, 66)  # by which CachedLM.loglikelihood names the task


def test_refused_in_one_line(lm, url, monkeypatch):
    with pytest.raises(ValueError, match=f"--server {url} serves {FOLDER}, not /models/other"):
        Server(url, Path("/models/other"))
    with pytest.raises(
        ValueError, match="--server http://127.0.0.1:1 does not answer.*start it with `phd serve"
    ):
        Server("http://127.0.0.1:1", FOLDER)
    monkeypatch.setattr(Answers, "nan", True)
    with pytest.raises(
        ValueError, match="no log-probabilities of prompts: start.*phd_all_positions"
    ) as error:
        lm._loglikelihood_tokens([(("", ""), [1, 2], [3])], disable_tqdm=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "vllm", "--dtype", "bfloat16"], "--dtype is the server's to choose"),
        (
            ["--engine", "vllm", "--rope-scale", "2"],
            "--rope-scale with --engine vllm: give it to",
        ),
        (["--engine", "vllm", "--rank-layers", "sink.64.1.4"], "--rank-layers changes the model's layers"),
        (["--server", "http://127.0.0.1:1"], "--server goes with --engine vllm"),
    ],
)
def test_flags_that_do_not_go_together(words, message, capsys):
    assert main(["eval", "model", "--corpus", "text.jsonl", *words]) == 2
    assert message in capsys.readouterr().err

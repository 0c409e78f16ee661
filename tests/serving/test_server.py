"""What clients get from the server of a model, without a connection: by calling it as its web server does."""

import asyncio
import json
import threading
from typing import Any

import pytest
import torch

from phd.serving import server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def app(tiny_folder):
    return server.make_app(str(tiny_folder), "cpu", "auto")


@pytest.fixture
def model(app, tiny_folder, monkeypatch):
    """The server's own, for what a test changes of it."""
    seen: list[Any] = []
    original = server.LimitedManager.generate_non_streaming

    async def generate(self, model, *a, **k):
        seen.append(model)
        return await original(self, model, *a, **k)

    monkeypatch.setattr(server.LimitedManager, "generate_non_streaming", generate)
    ask(app, prompt="a", max_tokens=1)
    monkeypatch.undo()
    return seen[0]


async def call(
    app, method: str, path: str, body: bytes, gone: asyncio.Event | None = None
) -> tuple[int, str]:
    """Status and body; with ``gone`` the client leaves when that is set (0 if it saw no answer)."""
    sent: list[Any] = []
    once = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if not once:
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}
        return once.pop()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [], "http_version": "1.1", "scheme": "http", "server": ("here", 80), "client": ("me", 1),
        "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    await app(scope, receive, send)
    if not sent:
        return 0, ""
    return sent[0]["status"], b"".join(x.get("body", b"") for x in sent[1:]).decode()


def ask(app, path: str = COMPLETIONS, **request: Any) -> tuple[int, Any]:
    status, text = asyncio.run(call(app, "POST", path, json.dumps(request).encode()))
    return status, text if request.get("stream") is True else json.loads(text)


def text_of(answer: tuple[int, Any]) -> str:
    status, content = answer
    assert status == 200, content
    return content["choices"][0]["text"]


def test_samples_at_the_temperature_asked_for(app):
    """Also by default; a seed repeats, whatever was answered in between; 0 is the likeliest."""
    texts = [text_of(ask(app, prompt="the", max_tokens=12, seed=seed, temperature=1)) for seed in range(6)]
    assert len(set(texts)) > 3
    assert len({text_of(ask(app, prompt="the", max_tokens=12)) for _ in range(4)}) > 1
    assert text_of(ask(app, prompt="the", max_tokens=12, seed=2)) == texts[2]
    greedy = {text_of(ask(app, prompt="the", max_tokens=12, temperature=0, seed=s)) for s in range(3)}
    assert len(greedy) == 1


def test_no_longer_than_the_model_was_trained_for(app, model):
    """256 positions, prompt included, whatever is asked for; a longer prompt is refused."""
    for settings in ({}, {"max_tokens": 100000}, {"max_tokens": 10**30}):
        status, answer = ask(app, prompt="the time", **settings)
        assert status == 200 and answer["usage"]["total_tokens"] == 256
        assert answer["choices"][0]["finish_reason"] == "length"
    status, text = ask(app, prompt="the time", max_tokens=100000, stream=True, temperature=0)
    usage = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))["usage"]
    assert status == 200 and usage["total_tokens"] == 256
    status, answer = ask(app, prompt="time " * 400)
    assert status == 400 and "the model was trained on sequences of 256: shorten it" in answer["detail"]
    assert ask(app, prompt="x" * 200_000)[0] == 413


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        ({"prompt": ""}, "prompt must be one text, not empty"),
        ({}, "prompt is missing"),
        ({"prompt": ["a", "b"]}, "prompt must be one text"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must be a whole number, at least 1, got 0"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens must be"),
        ({"prompt": "a", "max_tokens": "many"}, "max_tokens must be"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens must be"),
        ({"prompt": "a", "temperature": -1}, "temperature must be 0, or from 0.01 to 100, got -1"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature must be"),
        ({"prompt": "a", "temperature": 1e-40}, "temperature must be"),
        ({"prompt": "a", "top_p": 0}, "top_p must be"),
        ({"prompt": "a", "seed": 2**64}, "seed must be below"),
        ({"prompt": "a", "seed": "x"}, "seed must be"),
        ({"prompt": "a", "stop": [""]}, "stop must be"),
        ({"prompt": "a", "stream": "no"}, "stream must be true or false"),
        ({"prompt": "\ud800"}, "not JSON in UTF-8"),
        ({"prompt": "a", "logprobs": 0}, "logprobs: not offered by this server: leave it out"),
        ({"prompt": "a", "n": 2}, "n: not offered"),
        ({"prompt": "a", "echo": True}, "echo: not offered"),
        ({"prompt": "a", "best_of": 3}, "best_of: not offered"),
        ({"prompt": "a", "suffix": "b"}, "suffix: not offered"),
        ({"prompt": "a", "frequency_penalty": -1}, "frequency_penalty: not offered"),
        ({"prompt": "a", "logit_bias": {"3": 5}}, "logit_bias: not offered"),
        ({"prompt": "a", "generation_config": "{}"}, "generation_config: not offered"),
        ({"prompt": "a", "temprature": 0}, "temprature: not offered"),
    ],
)
def test_refused_with_one_line(app, request_, line):
    status, answer = ask(app, **request_)
    assert status == 400
    assert line in answer["error"]["message"] and "\n" not in answer["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_request(app, body):
    assert asyncio.run(call(app, "POST", COMPLETIONS, body))[0] == 400


def test_what_asks_for_nothing_is_taken(app):
    nothing = {"n": 1, "echo": False, "logprobs": None, "presence_penalty": 0, "frequency_penalty": 0.0,
               "logit_bias": {}, "user": "me", "stream_options": {"include_usage": True}, "best_of": 1,
               }  # fmt: skip
    plain = text_of(ask(app, prompt="the", max_tokens=5, temperature=0))
    assert text_of(ask(app, prompt="the", max_tokens=5, temperature=0, **nothing)) == plain
    assert "stop: not for this tokenizer" in ask(app, prompt="the", stop="a")[1]["detail"]


def test_models_and_paths(app, tiny_folder):
    status, text = asyncio.run(call(app, "GET", "/v1/models", b""))
    assert status == 200 and [x["id"] for x in json.loads(text)["data"]] == [str(tiny_folder)]
    assert asyncio.run(call(app, "GET", "/health", b""))[0] == 200
    for method, path in (
        ("POST", "/reset"),
        ("POST", "/load_model"),
        ("POST", "/v1/responses"),
        ("GET", COMPLETIONS),
    ):
        status, text = asyncio.run(call(app, method, path, b"{}"))
        assert status == 404 and "POST /v1/completions" in text
    status, answer = ask(app, CHAT, messages=[{"role": "user", "content": "a"}])
    assert status == 400 and "no chat template: use /v1/completions" in answer["error"]["message"]


def test_chat_with_a_template(app, monkeypatch):
    """And a template's own complaint is the client's."""
    tokenizer: Any = None
    original = server.ChatCompletionHandler._resolve_model

    def resolve(self, body):
        nonlocal tokenizer
        name, model, tokenizer = original(self, body)
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "{{ m.content }}{% endfor %}"
        )
        return name, model, tokenizer

    monkeypatch.setattr(server.ChatCompletionHandler, "_resolve_model", resolve)
    monkeypatch.setattr(app, "chat", True)
    message = {"role": "user", "content": "the"}
    status, answer = ask(app, CHAT, messages=[message], max_completion_tokens=3, temperature=0)
    assert status == 200 and answer["usage"]["completion_tokens"] == 3
    status, answer = ask(app, CHAT, messages=[{"role": "system", "content": "a"}])
    assert status == 400 and "no system" in answer["error"]["message"]
    for messages in ([], "a", [{"role": "user"}], [{"content": "a"}], [{"role": "user", "content": [1]}]):
        status, answer = ask(app, CHAT, messages=messages)
        assert status == 400 and "messages must be" in answer["error"]["message"]
    tokenizer.chat_template = None


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(app, model, monkeypatch, stream):
    """What it asked for ends, what waits behind it is answered, and what it had waiting never begins."""
    began, turns = threading.Event(), []
    generate = model.generate

    def endless(input_ids, stopping_criteria, streamer=None, **settings):
        """Steps without an end of their own; as ``generate`` hands tokens on, and asks whether to stop."""
        turns.append(settings)
        if len(turns) > 1:
            monkeypatch.undo()
            return generate(input_ids, stopping_criteria=stopping_criteria, streamer=streamer, **settings)
        if streamer is not None:
            streamer.put(input_ids)
        began.set()
        while not bool(stopping_criteria(input_ids, None).all()):
            if streamer is not None:
                streamer.put(torch.tensor([5]))
        return input_ids

    monkeypatch.setattr(model, "generate", endless)

    async def requests():
        body = json.dumps({"prompt": "the", "max_tokens": 100000, "stream": stream}).encode()
        gone, gone_too = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(call(app, "POST", COMPLETIONS, body, gone))
        await asyncio.to_thread(began.wait)
        waiting = asyncio.create_task(call(app, "POST", COMPLETIONS, body, gone_too))
        await asyncio.sleep(0)
        gone_too.set()
        await waiting
        gone.set()
        await first
        small = json.dumps({"prompt": "the", "max_tokens": 3, "temperature": 0}).encode()
        return await call(app, "POST", COMPLETIONS, small)

    status, text = asyncio.run(requests())
    assert status == 200 and json.loads(text)["usage"]["completion_tokens"] == 3
    if not stream:
        assert len(turns) == 2


def test_an_error_of_the_model_is_no_secret(app, monkeypatch):
    """A ValueError of generate is the request's."""

    def fail(self, **settings):
        raise ValueError("first line\nsecond")

    monkeypatch.setattr(server._Turn, "generate", fail)
    status, answer = ask(app, prompt="a")
    assert status == 400 and answer["error"]["message"] == "first line"

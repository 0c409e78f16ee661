"""transformers' server within a model's limits: requests that it cannot serve are refused before they reach
it, and generation ends when the client has disconnected.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import transformers
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from transformers import StoppingCriteria, StoppingCriteriaList, StopStringCriteria
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerateManager, GenerationState

from phd.hf import PHDLlamaForCausalLM
from phd.serving.requests import CHAT, ROUTES, Refused, checked

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_seed: ContextVar[int | None] = ContextVar("seed", default=None)
"""The state of the request that is being answered."""


class _Gone(Exception):
    """The client disconnected before its request's turn."""


class _WhenGone(StoppingCriteria):
    def __init__(self, gone: threading.Event) -> None:
        self.gone = gone

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.gone.is_set(), device=input_ids.device)


class _Turn:
    """What the server takes for the model: ``generate`` for one request, on the thread that generates."""

    def __init__(self, model: Any, gone: threading.Event) -> None:
        self.model, self.gone, self.seed = model, gone, _seed.get()

    def generate(self, **settings: Any) -> Any:
        if self.gone.is_set():
            raise _Gone
        if self.seed is None:
            torch.seed()
        else:  # here, where no other request draws numbers in between
            torch.manual_seed(self.seed)
        return self.model.generate(**settings, stopping_criteria=StoppingCriteriaList([_WhenGone(self.gone)]))


class LimitedManager(GenerateManager):
    """transformers' turns of a model, up to the ``limit`` of positions that it was trained on."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def _check(self, inputs: Any, settings: Any, processor: Any) -> None:
        length = inputs["input_ids"].shape[-1]
        if not length:
            raise HTTPException(400, "the prompt has no tokens: give at least one")
        if length >= self.limit:
            raise HTTPException(
                400,
                f"the prompt has {length} tokens, the model was trained on sequences of {self.limit}: "
                "shorten it",
            )
        if settings.stop_strings:
            try:
                StopStringCriteria(processor, settings.stop_strings)
            except ValueError as error:
                raise HTTPException(400, "stop: not for this tokenizer, which lacks letters") from error
        settings.max_new_tokens = min(settings.max_new_tokens, self.limit - length)

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, *a: Any, **k: Any
    ) -> Any:
        self._check(inputs, gen_config, processor)
        turn: Any = _Turn(model, threading.Event())
        return super().generate_streaming(turn, processor, inputs, gen_config, *a, **k)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, *a: Any, **k: Any
    ) -> Any:
        self._check(inputs, gen_config, processor)
        gone = threading.Event()
        turn: Any = _Turn(model, gone)
        work = asyncio.ensure_future(
            super().generate_non_streaming(turn, processor, inputs, gen_config, *a, **k)
        )
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to ask
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            gone.set()
            raise


class LimitedState(GenerationState):
    """Makes the manager above."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        if model_id not in self._generate_managers:
            self._generate_managers[model_id] = LimitedManager(self.limit)
        return super().get_manager(model_id, use_cb)


class Guard:
    """ASGI: looks at each request before ``app`` does, and drops it when its client is gone.

    Args:
        chat: whether the tokenizer has a template for it.
        largest: bytes of a request.
    """

    def __init__(self, app: Any, *, chat: bool, largest: int) -> None:
        self.app, self.chat, self.largest = app, chat, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._request(scope, receive)
        except Refused as error:
            content = {"error": {"message": str(error), "type": "invalid_request_error"}}
            await JSONResponse(content, error.status)(scope, receive, send)
            return
        if body is not None:
            await self._answer(scope, body, receive, send)

    async def _request(self, scope: Scope, receive: Receive) -> bytes | None:
        """The request's body as the server may see it; None if its client has disconnected."""
        method, path = scope["method"], scope["path"]
        if (method, path) not in ROUTES:
            offered = ", ".join(f"{a} {b}" for a, b in sorted(ROUTES) if self.chat or b != CHAT)
            raise Refused(f"{method} {path} is not offered by this server, which has {offered}", 404)
        if path == CHAT and not self.chat:
            raise Refused("the model's tokenizer has no chat template: use /v1/completions")
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.largest:
                raise Refused(f"the request has more than {self.largest:,} bytes: shorten it", 413)
        if method == "GET":
            return b""
        request = checked(path, body)
        _seed.set(request.pop("seed", None))
        return json.dumps(request).encode()

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            if not messages:
                await asyncio.Event().wait()  # the end of the connection is seen below
            return messages.pop()

        kept = [
            (name, value)
            for name, value in scope["headers"]
            if name not in (b"content-type", b"content-length")
        ]
        headers = [*kept, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        answer = asyncio.ensure_future(self.app({**scope, "headers": headers}, again, send))
        gone = asyncio.ensure_future(_until_gone(receive))
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        unfinished = gone if answer.done() else answer
        unfinished.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await unfinished
        if unfinished is gone:
            answer.result()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def make_app(folder: str, device: str, dtype: str) -> Guard:
    """The server of one model, loaded."""
    # It looks a model's class up in transformers by its name, not through the Auto classes.
    setattr(transformers, PHDLlamaForCausalLM.__name__, PHDLlamaForCausalLM)
    manager = ModelManager(device=device, dtype=dtype, force_model=folder)
    model, tokenizer = manager.load_model_and_processor(manager.process_model_name(folder))
    settings: Any = model.generation_config
    settings.do_sample = True  # at the temperature that is asked for; 0 takes the likeliest token
    if settings.top_k is None:
        settings.top_k = 0  # transformers would take the 50 likeliest
    entry = {"id": folder, "object": "model", "owned_by": "", "created": int(time.time())}
    setattr(manager, "get_gen_models", lambda: [entry])  # noqa: B010 # not those of a cache it has not
    limit = model.config.max_position_embeddings
    state = LimitedState(limit)
    app: FastAPI = build_server(
        manager,
        ChatCompletionHandler(manager, state),
        CompletionHandler(manager, state),
        ResponseHandler(manager, state),
        TranscriptionHandler(manager, state),
        SystemOneHandler(manager, state),
        state,
    )

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return JSONResponse({"error": {"message": line, "type": "invalid_request_error"}}, 400)

    for kind in (ValueError, TemplateError):
        app.add_exception_handler(kind, refuse)
    chat = getattr(tokenizer, "chat_template", None) is not None
    # no text of fewer tokens is as long
    return Guard(app, chat=chat, largest=100_000 + 100 * limit)


def serve(folder: Path, host: str, port: int, device: str, dtype: str) -> None:
    """Answer until interrupted."""
    import uvicorn

    app = make_app(str(folder), device, dtype)
    print(f"http://{host}:{port}/v1/completions, model {folder}", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="info")

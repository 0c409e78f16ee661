"""What `phd serve` takes of OpenAI's requests. Whatever would be ignored, or break the server, is refused."""

import json
import math
from collections.abc import Callable
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ROUTES = {("POST", COMPLETIONS), ("POST", CHAT), ("GET", "/v1/models"), ("GET", "/health")}

_NOTHING_ASKED = {
    "n": ("1",),
    "best_of": ("1",),
    "echo": ("false",),
    "logprobs": ("false",),
    "suffix": ('""',),
    "presence_penalty": ("0", "0.0"),
    "frequency_penalty": ("0", "0.0"),
    "logit_bias": ("{}",),
    "tools": ("[]",),
    "tool_choice": ('"none"',),
    "stream_options": ("{}", '{"include_usage": true}', '{"include_usage": false}'),
}
"""Fields that are not supported, with the JSON values that request nothing: clients send those by default."""


class Refused(ValueError):
    """A request that is answered with ``status`` and one line."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("role")) and isinstance(value.get("content"), str)


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_text, "a text"),
    "stream": (lambda x: isinstance(x, bool), "true or false"),
    # close to 0 the logits overflow
    "temperature": (lambda x: _is_number(x) and (x == 0 or 0.01 <= x <= 100), "0, or from 0.01 to 100"),
    "top_p": (lambda x: _is_number(x) and 0 < x <= 1, "above 0 and at most 1"),
    "seed": (lambda x: _is_count(x) or (x == 0 and x is not False), "a whole number, not negative"),
    "max_tokens": (_is_count, "a whole number, at least 1"),
    "stop": (
        lambda x: _is_text(x) or (isinstance(x, list) and 1 <= len(x) <= 16 and all(map(_is_text, x))),
        "a text, or a list of up to 16",
    ),
    "user": (lambda x: isinstance(x, str), "a text"),
}
_OWN: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    COMPLETIONS: {"prompt": (_is_text, "one text, not empty")},
    CHAT: {
        "messages": (
            lambda x: isinstance(x, list) and bool(x) and all(map(_is_message, x)),
            "a list of messages with a role and a content, texts both",
        ),
        "max_completion_tokens": (_is_count, "a whole number, at least 1"),
    },
}
_NEEDED = {COMPLETIONS: "prompt", CHAT: "messages"}


def checked(path: str, body: bytes) -> dict[str, Any]:
    """The request of ``body``, without the fields that ask for nothing.

    Raises:
        Refused: it is no request, or asks for what is not offered; names the field.
    """
    try:
        request = json.loads(body)
        json.dumps(request, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused(f"the request is not JSON in UTF-8 ({error})") from error
    if not isinstance(request, dict):
        raise Refused("the request must be a JSON object")
    request = {name: value for name, value in request.items() if value is not None}
    fields = _FIELDS | _OWN[path]
    for name, value in [*request.items()]:
        if name in fields:
            is_right, wanted = fields[name]
            if not is_right(value):
                raise Refused(f"{name} must be {wanted}, got {_short(value)}")
        elif json.dumps(value) in _NOTHING_ASKED.get(name, ()):
            del request[name]
        else:
            raise Refused(f"{name}: not offered by this server: leave it out")
    if _NEEDED[path] not in request:
        raise Refused(f"{_NEEDED[path]} is missing: it must be {fields[_NEEDED[path]][1]}")
    if request.get("seed", 0) >= 1 << 63:
        raise Refused("seed must be below 2 ** 63")
    request.pop("user", None)
    return request


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

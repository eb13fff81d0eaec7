"""Errors as each API writes them, so that its SDK raises its own classes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.errors import GatewayError

Content = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """
    content  the JSON object for one of our own errors
    frame    any such object as the last event of a stream that has begun
    """

    content: Callable[[GatewayError], Content]
    frame: Callable[[Content], bytes]

    def body(self, error: GatewayError) -> bytes:
        """Of a response."""
        return json.dumps(self.content(error)).encode()

    def event(self, error: GatewayError) -> bytes:
        """The last of a stream."""
        return self.frame(self.content(error))


def _openai(error: GatewayError) -> Content:
    return {"error": error.content}


def _openai_event(content: Content) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\ndata: [DONE]\n\n"


def _responses_event(content: Content) -> bytes:
    """The API's own error event; `error` beside it is what OpenAI's SDK looks for."""
    error = content["error"] if isinstance(content.get("error"), dict) else {"message": str(content.get("error"))}
    event = {"type": "error", **{name: error.get(name) for name in ("code", "message", "param")}}
    return _named_event({**event, "error": error})


# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _anthropic(error: GatewayError) -> Content:
    content = {"type": _ANTHROPIC_TYPES.get(error.status, "api_error"), "message": error.message, "code": error.outcome}
    return {"type": "error", "error": content}


def _named_event(content: Content) -> bytes:
    return b"event: error\ndata: " + json.dumps(content).encode() + b"\n\n"


OPENAI = ErrorFormat(_openai, _openai_event)
RESPONSES = ErrorFormat(_openai, _responses_event)
ANTHROPIC = ErrorFormat(_anthropic, _named_event)

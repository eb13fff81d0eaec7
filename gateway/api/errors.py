"""Our own errors as each API writes them, so that its SDK raises its own classes.

`whole` is the body of a response; `event`, the last of a stream that has begun.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Shape:
    whole: Callable[[GatewayError], bytes]
    event: Callable[[GatewayError], bytes]


def _openai_event(error: GatewayError) -> bytes:
    return b"data: " + error.body() + b"\n\ndata: [DONE]\n\n"


def _responses_event(error: GatewayError) -> bytes:
    """The API's own error event; `error` beside it is what OpenAI's SDK looks for."""
    told = {"type": "error", "code": error.outcome, "message": error.message, "param": error.param}
    return b"event: error\ndata: " + json.dumps({**told, "error": error.told}).encode() + b"\n\n"


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


def _anthropic(error: GatewayError) -> bytes:
    told = {"type": _ANTHROPIC_TYPES.get(error.status, "api_error"), "message": error.message, "code": error.outcome}
    return json.dumps({"type": "error", "error": told}).encode()


def _anthropic_event(error: GatewayError) -> bytes:
    return b"event: error\ndata: " + _anthropic(error) + b"\n\n"


OPENAI = Shape(GatewayError.body, _openai_event)
RESPONSES = Shape(GatewayError.body, _responses_event)
ANTHROPIC = Shape(_anthropic, _anthropic_event)

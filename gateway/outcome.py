"""How a request ended: one enum, mapped here and nowhere else to a status, an error type and a family.

The value is the `code` that a client reads, and the `outcome` label of the metrics.
"""

from enum import StrEnum
from typing import NamedTuple


class _Meaning(NamedTuple):
    family: str  # served | refused | rejected (never queued) | evicted (queued, or begun, then ended by us) | failed
    status: int
    type: str  # OpenAI's error type


class Outcome(StrEnum):
    COMPLETED = "completed"
    ENGINE_ERROR = "engine_error"  # the engine's own error, passed on as it is
    INTERRUPTED = "interrupted"  # shut down before it ended

    BAD_REQUEST = "bad_request"
    INVALID_API_KEY = "invalid_api_key"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LARGE = "body_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"

    TOO_MANY_CONNECTIONS = "too_many_connections"
    QUEUE_FULL = "queue_full"
    USER_LIMIT = "user_limit"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    TOO_LONG = "context_length_exceeded"

    QUEUE_TIMEOUT = "queue_timeout"
    CLIENT_LEFT = "client_left"
    CLIENT_STALLED = "client_stalled"
    DRAINING = "draining"
    ENGINE_DOWN = "engine_down"

    BAD_UPSTREAM = "bad_upstream"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    INTERNAL_ERROR = "internal_error"

    @property
    def family(self) -> str:
        return _MEANINGS[self].family

    @property
    def status(self) -> int:
        return _MEANINGS[self].status

    @property
    def type(self) -> str:
        return _MEANINGS[self].type


_MEANINGS = {
    Outcome.COMPLETED: _Meaning("served", 200, ""),
    Outcome.ENGINE_ERROR: _Meaning("served", 200, ""),
    Outcome.INTERRUPTED: _Meaning("failed", 503, "server_error"),
    Outcome.BAD_REQUEST: _Meaning("refused", 400, "invalid_request_error"),
    Outcome.INVALID_API_KEY: _Meaning("refused", 401, "authentication_error"),
    Outcome.NOT_FOUND: _Meaning("refused", 404, "invalid_request_error"),
    Outcome.METHOD_NOT_ALLOWED: _Meaning("refused", 405, "invalid_request_error"),
    Outcome.REQUEST_TIMEOUT: _Meaning("refused", 408, "invalid_request_error"),
    Outcome.BODY_TOO_LARGE: _Meaning("refused", 413, "invalid_request_error"),
    Outcome.HEADERS_TOO_LARGE: _Meaning("refused", 431, "invalid_request_error"),
    Outcome.TOO_MANY_CONNECTIONS: _Meaning("rejected", 503, "server_error"),
    Outcome.QUEUE_FULL: _Meaning("rejected", 429, "rate_limit_error"),
    Outcome.USER_LIMIT: _Meaning("rejected", 429, "rate_limit_error"),
    Outcome.DEADLINE_UNREACHABLE: _Meaning("rejected", 429, "rate_limit_error"),
    Outcome.TOO_LONG: _Meaning("rejected", 400, "invalid_request_error"),
    Outcome.QUEUE_TIMEOUT: _Meaning("evicted", 429, "rate_limit_error"),
    Outcome.CLIENT_LEFT: _Meaning("evicted", 499, "client_error"),
    Outcome.CLIENT_STALLED: _Meaning("evicted", 499, "client_error"),
    Outcome.DRAINING: _Meaning("evicted", 503, "server_error"),
    Outcome.ENGINE_DOWN: _Meaning("evicted", 503, "server_error"),
    Outcome.BAD_UPSTREAM: _Meaning("failed", 502, "server_error"),
    Outcome.UPSTREAM_TIMEOUT: _Meaning("failed", 504, "server_error"),
    Outcome.INTERNAL_ERROR: _Meaning("failed", 500, "server_error"),
}

"""Everything that can go wrong with a request, and what its client is told.

    GatewayError
    ├── BadRequest            400  what was sent cannot be read
    ├── UnknownKey            401
    ├── NotFound              404
    ├── MethodNotAllowed      405
    ├── RequestTimeout        408  its body took longer than `body_timeout` to come, or its head too long
    ├── BodyTooLarge          413
    ├── HeadersTooLarge       431
    ├── Rejected              429  never queued: `queue_full`, `user_limit`, `deadline_unreachable`;
    │                              400 `context_length_exceeded`, for what can never fit
    ├── QueueTimeout          429  evicted: waited longer than `queue_timeout`
    ├── ClientLeft            499  evicted or cut off; nobody is there to be told
    ├── ClientStalled         499  stopped reading for `client_stall`
    ├── InternalError         500  a bug of ours; the log has it
    ├── BadUpstream           502  the engine hung up, or did not speak HTTP
    ├── TooManyConnections    503
    ├── UpstreamDown          503  the engine refuses connections
    ├── Draining              503  evicted: the gateway shuts down
    └── UpstreamTimeout       504  the engine was silent for too long

The shape is OpenAI's; `gateway.api.errors` has those of the others. Status, type and code are the outcome's.
"""

import json

from gateway.outcome import Outcome


class GatewayError(Exception):
    """Something to tell the client. `retry_after`, in seconds, is for whoever may come again."""

    outcome: Outcome = Outcome.INTERNAL_ERROR
    retry_after: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def status(self) -> int:
        return self.outcome.status

    @property
    def content(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.outcome.type, "param": self.param, "code": self.outcome}

    def body(self) -> bytes:
        return json.dumps({"error": self.content}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.retry_after is None:
            return []
        return [(b"retry-after", str(self.retry_after).encode())]


class BadRequest(GatewayError):
    outcome = Outcome.BAD_REQUEST


class UnknownKey(GatewayError):
    outcome = Outcome.INVALID_API_KEY

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"www-authenticate", b"Bearer")]


class NotFound(GatewayError):
    outcome = Outcome.NOT_FOUND


class MethodNotAllowed(GatewayError):
    outcome = Outcome.METHOD_NOT_ALLOWED


class RequestTimeout(GatewayError):
    outcome = Outcome.REQUEST_TIMEOUT


class BodyTooLarge(GatewayError):
    outcome = Outcome.BODY_TOO_LARGE


class HeadersTooLarge(GatewayError):
    outcome = Outcome.HEADERS_TOO_LARGE


class Rejected(GatewayError):
    """The message names the knob, its value and what was measured."""

    def __init__(self, outcome: Outcome, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after = retry_after


class QueueTimeout(GatewayError):
    outcome = Outcome.QUEUE_TIMEOUT


class ClientLeft(GatewayError):
    outcome = Outcome.CLIENT_LEFT


class ClientStalled(GatewayError):
    outcome = Outcome.CLIENT_STALLED


class InternalError(GatewayError):
    outcome = Outcome.INTERNAL_ERROR


class BadUpstream(GatewayError):
    outcome = Outcome.BAD_UPSTREAM


class TooManyConnections(GatewayError):
    outcome = Outcome.TOO_MANY_CONNECTIONS
    retry_after = 5


class UpstreamDown(GatewayError):
    outcome = Outcome.ENGINE_DOWN
    retry_after = 5


class Draining(GatewayError):
    outcome = Outcome.DRAINING
    retry_after = 10


class UpstreamTimeout(GatewayError):
    outcome = Outcome.UPSTREAM_TIMEOUT

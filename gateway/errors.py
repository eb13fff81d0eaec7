"""Everything that can go wrong with a request, and what its client is told.

    GatewayError
    ├── BadRequest            400  what was sent cannot be read
    ├── UnknownKey            401
    ├── NotFound              404
    ├── MethodNotAllowed      405
    ├── BodyTooLarge          413
    ├── QueueTimeout          429  evicted: waited longer than `queue_timeout`
    ├── ClientLeft            499  evicted or cut off; nobody is there to be told
    ├── ClientStalled         499  stopped reading for `client_stall`
    ├── InternalError         500  a bug of ours; the log has it
    ├── BadUpstream           502  the engine hung up, or did not speak HTTP
    ├── UpstreamDown          503  the engine refuses connections
    ├── Draining              503  evicted: the gateway shuts down
    └── UpstreamTimeout       504  the engine was silent for too long

The shape is OpenAI's, so that its SDKs raise their own classes. `code` is of low cardinality and doubles as
the `outcome` label of the metrics.
"""

import json


class GatewayError(Exception):
    status = 500
    type = "server_error"
    code = "gateway_error"
    retry_after: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.retry_after is None:
            return []
        return [(b"retry-after", str(self.retry_after).encode())]


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"
    code = "bad_request"


class UnknownKey(GatewayError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"www-authenticate", b"Bearer")]


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class QueueTimeout(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "queue_timeout"
    retry_after = 30


class ClientLeft(GatewayError):
    status = 499
    code = "client_left"


class ClientStalled(GatewayError):
    status = 499
    code = "client_stalled"


class InternalError(GatewayError):
    status = 500
    code = "internal_error"


class BadUpstream(GatewayError):
    status = 502
    code = "bad_upstream"


class UpstreamDown(GatewayError):
    status = 503
    code = "engine_down"
    retry_after = 5


class Draining(GatewayError):
    status = 503
    code = "draining"
    retry_after = 10


class UpstreamTimeout(GatewayError):
    status = 504
    code = "upstream_timeout"

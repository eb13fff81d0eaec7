"""One connection of a client, with the bounds that uvicorn leaves open: how many there are, how long a request's head
may be and may take, and for how long somebody may go on sending what nobody reads.

Who breaks one gets an error of our shape where HTTP still allows for it, and the connection ends.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import BadRequest, GatewayError, HeadersTooLarge, RequestTimeout, TooManyConnections
from gateway.types import Headers

# Seconds for a request's head to come, from its first byte on; and for a first request.
HEAD_TIMEOUT = 20.0

# Seconds for which the rest of a refused body is read away, so that its sender comes to read the answer.
LINGER = 5.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """`refused` is told of each error that ends a connection before there is a request to count."""

    max_connections: int
    max_headers: int
    refused: Callable[[GatewayError], object]


def bounded(bounds: Bounds) -> type["Connection"]:
    """uvicorn makes its connections itself, from a class."""
    return type("BoundedConnection", (Connection,), {"bounds": bounds})


class Connection(HttpToolsProtocol):
    bounds: Bounds
    # Bytes of the head that is under way; None while there is none.
    _head: int | None = 0
    _timer: asyncio.TimerHandle | None = None
    _data = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self.bounds.max_connections
        if len(self.connections) > 2 * limit:
            # Nor may those who are turned away be without number.
            transport.abort()
        elif len(self.connections) > limit:
            self.app = self._turn_away
        self._within(HEAD_TIMEOUT, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._data = data
        super().data_received(data)
        self._data = b""
        # A head that goes on; one that has ended is looked at as a whole.
        if self._head is not None:
            self._head += len(data)
            if self._head > self.bounds.max_headers:
                self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        self._within(HEAD_TIMEOUT, self._head_is_late)

    def on_headers_complete(self) -> None:
        self._head = None
        self._in_time()
        if self.parser.should_upgrade():
            return
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.bounds.max_headers:
            self.app = partial(self._answer, self._too_large())
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if self.cycle.response_complete:
            self._within(self.timeout_keep_alive, self.transport.close)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._within(LINGER, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest(msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Another protocol is offered, as Java's HttpClient offers HTTP/2 with each request. It may be ignored (RFC
        9110 section 7.8), but the parser stopped behind the head and would lose the body: begin again without it.
        """
        error = sys.exc_info()[1]
        rest = self._data[error.args[0] :] if isinstance(error, httptools.HttpParserUpgrade) else b""
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        offers = (b"connection", b"upgrade", b"http2-settings")
        headers = [name + b": " + value + b"\r\n" for name, value in self.headers if name not in offers]
        self.parser = httptools.HttpRequestParser(self)
        super().data_received(b"".join([line, *headers, b"\r\n", rest]))

    def _head_is_late(self) -> None:
        self._refuse(RequestTimeout(f"The request's head has not come within {HEAD_TIMEOUT:g} s."))

    def _too_large(self) -> GatewayError:
        return HeadersTooLarge(f"The headers are larger than {self.bounds.max_headers} bytes (max_headers).")

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Those who only look are served: a probe must not take a busy gateway for a dead one."""
        if scope["method"] == "POST":
            limit = self.bounds.max_connections
            error = TooManyConnections(f"There are {limit} connections already (max_connections).")
            await self._answer(error, scope, receive, send)
        else:
            await self.config.loaded_app(scope, receive, send)

    async def _answer(self, error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
        self.bounds.refused(error)
        await send({"type": "http.response.start", "status": error.status, "headers": _headers(error)})
        await send({"type": "http.response.body", "body": error.body()})

    def _refuse(self, error: GatewayError) -> None:
        """Past ASGI: there is no request yet. Should an answer to another one be under way, it must stay readable."""
        self.bounds.refused(error)
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr]  # None at first
            head = b"".join(name + b": " + value + b"\r\n" for name, value in _headers(error))
            self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + error.body())
        self.transport.close()

    def _within(self, seconds: float, otherwise: Callable[[], object]) -> None:
        self._in_time()
        self._timer = self.loop.call_later(seconds, otherwise)

    def _in_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _headers(error: GatewayError) -> Headers:
    return [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(error.body())).encode()),
        (b"connection", b"close"),
        *error.headers(),
    ]

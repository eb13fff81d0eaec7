"""The wire to the server under test: HTTP/1.1, a connection for each request.

Not httpx: a chunk costs it close to a hundred microseconds, and an engine's step sends one to everybody at once. With
200 streams the last would be stamped, and who is due just then be sent, tens of milliseconds late. Here a chunk is
stamped as it leaves its socket. No connection is used again, for a server closes an idle one when it likes (vLLM after
5 s), and a request sent in that moment fails for nobody's fault.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import anyio
import httptools

from loadtest.runs.streamed_answer import StreamedAnswer

CONNECT_TIMEOUT = 10.0

Headers = dict[str, str]


class Server:
    """An OpenAI server, by its URL with or without /v1. Its name is resolved once.

    root  its URL without /v1, where vLLM has what is not OpenAI's
    """

    def __init__(self, base_url: str) -> None:
        self.root = base_url.rstrip("/").removesuffix("/v1")
        url = urlsplit(self.root)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"a server's address is like http://127.0.0.1:8000, not {base_url!r}")
        self._host = url.hostname
        self._authority = url.netloc.rpartition("@")[2]
        self._path = url.path
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._addresses = [(url.hostname, url.port or (443 if self._tls else 80))]

    async def resolve(self) -> None:
        """Before the run, for it takes its time. A name that is unknown is so at each connection."""
        host, port = self._addresses[0]
        with suppress(OSError):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self._addresses = [(str(address[0]), int(address[1])) for *_, address in found]

    def request(self, path: str, body: bytes, headers: Headers) -> bytes:
        """A POST of JSON to a path below /v1, as it goes over the wire."""
        fields = {
            "host": self._authority,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **headers,
        }
        lines = [f"POST {self._path}/v1{path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def exchange(self, request: bytes, answer: StreamedAnswer, clock: Callable[[], float]) -> None:
        """Send, and tell the answer what comes back, with the clock's time, to its end. Raises OSError if there is no
        connection. Cancelled, it hangs up at once."""
        exchange = _Exchange(answer, clock)
        with anyio.fail_after(CONNECT_TIMEOUT):
            transport = await self._connect(exchange)
        try:
            transport.write(request)
            await exchange.over
        finally:
            transport.abort()

    async def _connect(self, exchange: "_Exchange") -> asyncio.WriteTransport:
        """To the first of its addresses that answers, which is the first to be tried from then on."""
        failure = OSError("no address")
        for address in list(self._addresses):
            try:
                transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: exchange, *address, ssl=self._tls, server_hostname=self._host if self._tls else None
                )
            except OSError as error:
                failure = error
            else:
                self._addresses.sort(key=lambda other: other != address)
                return transport
        raise failure


class _Exchange(asyncio.Protocol):
    """One request and its answer; httptools calls the methods that are named as its callbacks."""

    def __init__(self, answer: StreamedAnswer, clock: Callable[[], float]) -> None:
        self.over = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._clock = clock
        self._now = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}

    def data_received(self, data: bytes) -> None:
        if self.over.done():
            return
        self._now = self._clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self.over.set_exception(error)  # our own failure, not the server's
        except httptools.HttpParserError:  # it does not speak HTTP, or no longer
            self._end(whole=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._now = self._clock()
        framed = {b"content-length", b"transfer-encoding"} & self._headers.keys()
        self._end(whole=exc is None and not framed)

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # below, it only says that there is more to come
            self._answer.begin(status, self._headers)

    def on_body(self, body: bytes) -> None:
        self._answer.feed(body, self._now)

    def on_message_complete(self) -> None:
        if self._answer.status:
            self._end(whole=True)

    def _end(self, *, whole: bool) -> None:
        if not self.over.done():
            self._answer.end(self._now, whole=whole)
            self.over.set_result(None)

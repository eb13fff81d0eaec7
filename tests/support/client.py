"""A client that sends a request at once and reads its answer when the test wants to."""

import http.client
import json
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from tests.support.waiting import DEADLINE
from tests.support.wire import CHAT


class PendingRequest:
    """A request that has been sent and whose answer may still be to come."""

    def __init__(
        self,
        url: str,
        body: object,
        path: str = CHAT,
        headers: dict[str, str] | None = None,
        *,
        method: str = "POST",
        receive_buffer: int | None = None,
    ) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=DEADLINE)
        if receive_buffer is not None:
            # Set before connecting: the TCP window is negotiated then.
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(DEADLINE)
            sock.connect((address.hostname, address.port))
            self._connection.sock = sock
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
        self._response: http.client.HTTPResponse | None = None

    @property
    def response(self) -> http.client.HTTPResponse:
        """Status and headers; waits for them."""
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str | None:
        return self.response.getheader(name)

    def read(self) -> bytes:
        """The rest of the answer. Raises http.client.IncompleteRead if it was broken off."""
        return self.response.read()

    def json(self) -> Any:
        return json.loads(self.read())

    def event(self) -> bytes:
        """The next event of a stream with its blank line, or whatever is left at the end of the stream."""
        event = b""
        while not event.endswith(b"\n\n"):
            if not (line := self.response.readline()):
                break
            event += line
        return event

    def leave(self) -> None:
        """Hang up, now."""
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        if self._response is not None:
            self._response.close()
        self._connection.close()

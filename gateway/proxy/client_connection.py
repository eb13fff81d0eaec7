"""The client's end of one exchange: its body, its answer, and whether it is still there.

Raw ASGI, because a client that leaves while its request is queued must be noticed; Starlette's responses listen
only once they have begun. Spec: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from time import perf_counter

import anyio
from starlette.types import Message, Receive, Scope, Send

from gateway.errors import BodyTooLarge, ClientLeft, ClientStalled, GatewayError, RequestTimeout
from gateway.types import Headers


class ClientConnection:
    def __init__(self, scope: Scope, receive: Receive, send: Send, stall: float) -> None:
        # The parser leaves the blanks behind a value, which are no part of it (RFC 9110 section 5.5).
        self.headers: dict[bytes, bytes] = {name: value.strip() for name, value in scope["headers"]}
        self.address: str | None = scope["client"][0] if scope.get("client") else None
        self.started = False
        self.status = 0  # that it was told, once it was
        self.gone: GatewayError | None = None
        self._answered = False
        self._asked = False  # for its body
        self._receive = receive
        self._send = send
        self._stall = stall
        self._writing_since: float | None = None

    async def body(self, limit: int, timeout: float) -> bytes:
        """The whole body. Raises BodyTooLarge before more than `limit` bytes are kept, RequestTimeout, ClientLeft."""
        with anyio.move_on_after(timeout):
            return await self._body(limit)
        raise RequestTimeout(f"The body has not come whole within {timeout:g} s (body_timeout).")

    async def _body(self, limit: int) -> bytes:
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise BodyTooLarge(f"The body is larger than {limit} bytes (max_body).")
        self._asked = True
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft("The client left before its request was read.")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise BodyTooLarge(f"The body is larger than {limit} bytes (max_body).")
            more = message.get("more_body", False)
        return b"".join(chunks)

    async def watch_leaving(self, scope: anyio.CancelScope) -> None:
        """Cancel the scope when the client is gone: one watcher for the request's whole life."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # That is also what a client is told to have done that has its whole answer.
        if self._answered:
            return
        self.gone = ClientLeft("The client left.")
        scope.cancel()

    async def watch_reading(self, scope: anyio.CancelScope) -> None:
        """Cancel the scope when a write has waited for the client as long as `stall`.

        It looks in on the write under way from time to time, so that a chunk pays for a clock reading and no timer.
        """
        while True:
            await anyio.sleep(self._stall / 10)
            since = self._writing_since
            if since is not None and perf_counter() - since >= self._stall:
                break
        self.gone = ClientStalled(f"The client read nothing for {self._stall:g} s (client_stall).")
        scope.cancel()

    async def start(self, status: int, headers: Headers) -> None:
        self.started, self.status = True, status
        await self._write({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes, *, more: bool = True) -> None:
        self._answered = not more
        await self._write({"type": "http.response.body", "body": chunk, "more_body": more})

    async def comment(self, text: str) -> None:
        """A line of a stream that is no event, and that nobody is shown; nothing once the answer is over."""
        if not self._answered:
            await self.write(f": {text}\n".encode())

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        length = [(b"content-length", str(len(body)).encode())]
        if b"expect" in self.headers and not self._asked:
            # Its body was never asked for: what comes next on this connection could be that, or another request.
            length.append((b"connection", b"close"))
        await self.start(status, [header for header in headers if header[0] != b"content-length"] + length)
        await self.write(body, more=False)

    async def _write(self, message: Message) -> None:
        self._writing_since = perf_counter()
        await self._send(message)
        self._writing_since = None

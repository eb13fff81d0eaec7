"""The engine's end of one exchange: httpx to vLLM's OpenAI server.

What httpx raises is mapped to `gateway.errors` here and nowhere else.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import httpx

from gateway.client import Headers
from gateway.errors import BadUpstream, UpstreamDown, UpstreamTimeout

# vLLM closes idle connections after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE). Ours must go first: a request sent on a
# connection that the engine is just closing fails for no fault of anybody's.
KEEPALIVE_EXPIRY = 2.0
CONNECT_TIMEOUT = 5.0
WRITE_TIMEOUT = 60.0

# Hop by hop (RFC 9110 section 7.6.1), or about this connection and not the message.
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
# The client's key is for the gateway, not for vLLM; the engine's order is the gateway's to decide; and what comes
# back must not be compressed, for its chunks pass as they are.
_NOT_FORWARDED = _HOP_BY_HOP | {
    b"accept-encoding",
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"host",
    b"traceparent",
    b"tracestate",
    b"x-api-key",
    b"x-request-id",
    b"x-vllm-priority",
}
_NOT_RETURNED = _HOP_BY_HOP | {b"date", b"server", b"x-request-id"}


def forwarded(headers: dict[bytes, bytes]) -> Headers:
    named = {name.strip().lower() for name in headers.get(b"connection", b"").split(b",")}
    return [(name, value) for name, value in headers.items() if name not in _NOT_FORWARDED | named]


def returned(response: httpx.Response) -> Headers:
    lower = ((name.lower(), value) for name, value in response.headers.raw)
    return [(name, value) for name, value in lower if name not in _NOT_RETURNED]


class Upstream:
    """An unlimited pool: admission says how many requests are under way, not a connection limit."""

    def __init__(self, base_url: str, *, key: str | None = None, timeout: float = 1800.0) -> None:
        self.base_url = base_url
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_EXPIRY
            ),
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT, write=WRITE_TIMEOUT, pool=None),
            trust_env=False,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def send(
        self, method: str, path: str, body: bytes, headers: Headers, *, timeout: float | None = None
    ) -> AsyncIterator["Answer"]:
        """Send, and hand over the answer when its headers are there. Leaving the block closes it, which is how
        vLLM learns that a request is no longer wanted.

        Raises UpstreamDown, BadUpstream, UpstreamTimeout.
        """
        patience = self._client.timeout if timeout is None else timeout
        request = self._client.build_request(method, path, content=body, headers=headers, timeout=patience)
        # Around the block too, for what goes wrong while the answer is read is raised in there.
        with _mapped(self.base_url):
            response = await self._client.send(request, stream=True)
            try:
                yield Answer(response)
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()

    async def get(self, path: str, *, timeout: float = 10.0) -> httpx.Response:
        """A small answer, whole. Raises as `send` does."""
        with _mapped(self.base_url):
            return await self._client.get(path, timeout=timeout)

    async def ask(self, path: str, body: bytes, *, timeout: float = 10.0) -> httpx.Response:
        """A small question in JSON, its answer whole. Raises as `send` does."""
        with _mapped(self.base_url):
            return await self._client.post(
                path, content=body, headers={"content-type": "application/json"}, timeout=timeout
            )


class Answer:
    """A response whose body has not been read yet."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = returned(response)
        self.streams = response.headers.get("content-type", "").startswith("text/event-stream")
        self._response = response

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as the engine sent it."""
        return self._response.aiter_raw()

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])


@contextmanager
def _mapped(base_url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise UpstreamDown(f"The engine at {base_url} cannot be reached.") from error
    except httpx.TimeoutException as error:
        raise UpstreamTimeout(f"The engine at {base_url} was silent for too long (upstream_timeout).") from error
    except httpx.HTTPError as error:
        raise BadUpstream(f"The engine at {base_url} broke off its answer.") from error

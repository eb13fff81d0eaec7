"""The engine's end of one exchange: httpx to vLLM's OpenAI server.

What httpx raises is mapped to `gateway.errors` here and nowhere else.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import anyio
import httpx

from gateway.config.settings import Settings
from gateway.errors import BadUpstream, UpstreamDown, UpstreamTimeout
from gateway.tcp import PROBES
from gateway.types import Headers

logger = logging.getLogger("fairlane")

# vLLM closes idle connections after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE). Ours must go first: a request sent on a
# connection that the engine is just closing fails for no fault of anybody's.
KEEPALIVE_EXPIRY = 2.0
CONNECT_TIMEOUT = 5.0
WRITE_TIMEOUT = 60.0

# How often a request that waits for an engine which is away knocks again.
RECONNECT = 0.5

# The connection went before an answer came: by the engine's closing of an idle one at the wrong moment, or its death.
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
_UNREACHABLE = (httpx.ConnectError, httpx.ConnectTimeout)

# Hop by hop (RFC 9110 section 7.6.1), or about this connection and not the message.
HOP_BY_HOP = {
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
_NOT_RETURNED = HOP_BY_HOP | {b"date", b"server", b"x-request-id"}


def returned(response: httpx.Response) -> Headers:
    lower = ((name.lower(), value) for name, value in response.headers.raw)
    return [(name, value) for name, value in lower if name not in _NOT_RETURNED]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """
    timeout  seconds of silence, instead of the client's; such a request is a small question, which does not wait for
             an engine that is away
    on_sent  is told, each time, that the engine is there
    """

    method: str
    path: str
    body: bytes
    headers: Headers
    timeout: float | None = None
    on_sent: Callable[[], object] = field(default=lambda: None)


class EngineClient:
    """An unlimited pool: admission says how many requests are under way, not a connection limit.

    away_since  when the engine was first found to refuse connections, if it still does
    grace       seconds from then on for which requests wait for it to be back
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout: float = 1800.0,
        grace: float = 0.0,
        on_retry: Callable[[], object] = lambda: None,
    ) -> None:
        self.base_url = base_url
        self.away_since: float | None = None
        self.grace = grace
        self._on_retry = on_retry
        self._client = _http_client(base_url, key, timeout)
        # Keeps no connections, so that each of its requests has a fresh one.
        self._fresh = _http_client(base_url, key, timeout, kept=0)

    def reconfigure(self, settings: Settings) -> None:
        self.grace = settings.engine_grace

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._fresh.aclose()

    @asynccontextmanager
    async def send(self, wanted: EngineRequest) -> AsyncIterator["EngineResponse"]:
        """Send, and hand over the answer when its headers are there. Leaving the block closes it, which is how
        vLLM learns that a request is no longer wanted.

        Raises UpstreamDown, BadUpstream, UpstreamTimeout.
        """
        # Around the block too, for what goes wrong while the answer is read is raised in there.
        with _mapped(self.base_url):
            response = await self._respond(wanted)
            try:
                yield response
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()

    async def _respond(self, wanted: EngineRequest) -> "EngineResponse":
        """Wait for an engine that is away, and ask once more, on a fresh connection, where one broke before an answer
        came. Nothing of an answer has been passed on by then; the engine may have begun, and at worst does it twice.
        """
        client, waited = self._client, False
        while True:
            try:
                response = await client.send(_request(client, wanted), stream=True)
            except _UNREACHABLE:
                if self._away() >= self.grace or wanted.timeout is not None:
                    raise
                waited = True
                await anyio.sleep(RECONNECT)
            except _BROKEN as error:
                if client is self._fresh:
                    raise
                # What it did say may be anything, and is not for a log.
                logger.warning("engine: %s before its answer: asking once more", type(error).__name__)
                self._on_retry()
                client = self._fresh
            else:
                self.away_since = None
                return EngineResponse(response, first_attempt=client is self._client and not waited)

    def _away(self) -> float:
        """Seconds for which the engine has refused connections, this time included."""
        now = perf_counter()
        if self.away_since is None:
            self.away_since = now
            logger.warning("engine: %s cannot be reached; requests wait for it for %g s", self.base_url, self.grace)
        return now - self.away_since

    async def get(self, path: str, *, timeout: float = 10.0) -> httpx.Response:
        """A small answer, whole. Raises as `send` does, at once."""
        with _mapped(self.base_url):
            try:
                answer = await self._client.get(path, timeout=timeout)
            except _UNREACHABLE:
                self._away()
                raise
            self.away_since = None
            return answer

    async def ask(self, path: str, body: bytes, *, timeout: float = 10.0) -> httpx.Response:
        """A small question in JSON, its answer whole. Raises as `send` does."""
        with _mapped(self.base_url):
            return await self._client.post(
                path, content=body, headers={"content-type": "application/json"}, timeout=timeout
            )


def _http_client(base_url: str, key: str | None, timeout: float, kept: int | None = None) -> httpx.AsyncClient:
    """`kept` idle connections at most."""
    verify = httpx.create_ssl_context(trust_env=False)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=kept, keepalive_expiry=KEEPALIVE_EXPIRY)
    return httpx.AsyncClient(
        base_url=base_url,
        headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
        transport=httpx.AsyncHTTPTransport(verify, limits=limits, trust_env=False, socket_options=PROBES),
        timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT, write=WRITE_TIMEOUT, pool=None),
        trust_env=False,
    )


def _request(client: httpx.AsyncClient, wanted: EngineRequest) -> httpx.Request:
    patience = client.timeout if wanted.timeout is None else wanted.timeout
    request = client.build_request(
        wanted.method, wanted.path, content=wanted.body, headers=wanted.headers, timeout=patience
    )
    request.stream = _Body(wanted.body, wanted.on_sent)
    return request


class _Body(httpx.AsyncByteStream):
    """A body that tells when it is sent: there is a connection, and the request's headers have gone."""

    def __init__(self, body: bytes, on_sent: Callable[[], object]) -> None:
        self._body = body
        self._on_sent = on_sent

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._on_sent()
        yield self._body


class EngineResponse:
    """A response whose body has not been read yet.

    first_attempt  the first attempt brought it: what it took says something of the engine
    """

    def __init__(self, response: httpx.Response, *, first_attempt: bool = True) -> None:
        self.first_attempt = first_attempt
        self.status = response.status_code
        self.headers = returned(response)
        self.streams = response.headers.get("content-type", "").startswith("text/event-stream")
        self._response = response

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as the engine sent it."""
        return self._response.aiter_raw()

    async def aclose(self) -> None:
        await self._response.aclose()

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])


@contextmanager
def _mapped(base_url: str) -> Iterator[None]:
    try:
        yield
    except _UNREACHABLE as error:
        raise UpstreamDown(f"The engine at {base_url} cannot be reached.") from error
    except httpx.TimeoutException as error:
        raise UpstreamTimeout(f"The engine at {base_url} was silent for too long (upstream_timeout).") from error
    except httpx.HTTPError as error:
        raise BadUpstream(f"The engine at {base_url} broke off its answer.") from error

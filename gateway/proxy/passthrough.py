"""One request that is passed on at once, for it is no work for the GPU: it takes no turn, no seat, and has no trace."""

import logging
import re

import anyio
from starlette.types import Receive, Scope, Send

from gateway.api.base import NO_EVENT
from gateway.api.routes import Passed, error_format
from gateway.api.sse import EventStream
from gateway.engine.client import EngineClient, EngineRequest
from gateway.errors import GatewayError, InternalError, NotFound
from gateway.proxy.client_connection import ClientConnection
from gateway.proxy.reception import Reception
from gateway.proxy.relay import forwarded

logger = logging.getLogger("fairlane")

# Seconds that the engine may say nothing. It has little to do here; but its own loop is busy, too.
SILENCE = 30.0

# An id in a path is put into the engine's path, so it may hold nothing that means something there.
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.:-]{0,127}")


class Passthrough:
    """As a raw ASGI endpoint."""

    def __init__(self, route: Passed, reception: Reception, engine: EngineClient) -> None:
        self._route = route
        self._reception = reception
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = ClientConnection(scope, receive, send, self._reception.client_stall)
        async with anyio.create_task_group() as tasks:
            # Caught in here, for the group would wrap what leaves it into an ExceptionGroup.
            try:
                _, body = await self._reception.read_body(client)
                tasks.start_soon(client.watch_leaving, tasks.cancel_scope)
                tasks.start_soon(client.watch_reading, tasks.cancel_scope)
                await self._relay(client, self._path(scope), body)
            except GatewayError as error:
                await self._fail(client, error)
            except Exception:
                logger.exception("%s %s failed", self._route.method, self._route.path)
                await self._fail(client, InternalError("The gateway failed; its log has the reason."))
            tasks.cancel_scope.cancel()

    def _path(self, scope: Scope) -> str:
        given = scope["path_params"]
        if not all(map(_ID.fullmatch, given.values())):
            raise NotFound("There is nothing of that name.")
        query = scope["query_string"].decode("latin-1")
        return self._route.path.format(**given) + (f"?{query}" if query else "")

    async def _relay(self, client: ClientConnection, path: str, body: bytes) -> None:
        wanted = EngineRequest(self._route.method, path, body, forwarded(client.headers), timeout=SILENCE)
        async with self._engine.send(wanted) as response:
            if response.streams:
                await client.start(response.status, response.headers)
                events = EventStream(lambda data: NO_EVENT)
                async for chunk in response.chunks():
                    if whole := events.feed(chunk):
                        await client.write(whole)
                await client.write(events.end(), more=False)
            else:
                await client.respond(response.status, response.headers, await response.read())

    async def _fail(self, client: ClientConnection, error: GatewayError) -> None:
        """As a response; or, once a stream has begun, as its last event."""
        errors = error_format(self._route.path)
        if client.started:
            await client.write(errors.event(error), more=False)
        else:
            headers = [(b"content-type", b"application/json"), *error.headers()]
            await client.respond(error.status, headers, errors.body(error))

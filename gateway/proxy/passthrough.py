"""One request that is passed on at once, for it is no work for the GPU: it takes no turn, no seat, and has no trace."""

import logging
import re
from dataclasses import dataclass

import anyio
from starlette.types import Receive, Scope, Send

from gateway.api.base import NO_EVENT
from gateway.api.routes import Passed, error_format
from gateway.api.sse import EventStream
from gateway.engine.client import forwarded
from gateway.errors import GatewayError, InternalError, NotFound
from gateway.parts import Parts
from gateway.proxy.client_connection import ClientConnection

logger = logging.getLogger("fairlane")

# Seconds that the engine may say nothing. It has little to do here; but its own loop is busy, too.
SILENCE = 30.0

# An id in a path is put into the engine's path, so it may hold nothing that means something there.
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.:-]{0,127}")


@dataclass(frozen=True, slots=True)
class Passthrough:
    """As a raw ASGI endpoint."""

    route: Passed
    parts: Parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = ClientConnection(scope, receive, send, self.parts.settings.client_stall)
        async with anyio.create_task_group() as tasks:
            # Caught in here, for the group would wrap what leaves it into an ExceptionGroup.
            try:
                self.parts.callers.identify(client.address, client.headers)
                body = await client.body(self.parts.settings.max_body, self.parts.settings.body_timeout)
                tasks.start_soon(client.watch_leaving, tasks.cancel_scope)
                tasks.start_soon(client.watch_reading, tasks.cancel_scope)
                await self._relay(client, self._path(scope), body)
            except GatewayError as error:
                await self._tell(client, error)
            except Exception:
                logger.exception("%s %s failed", self.route.method, self.route.path)
                await self._tell(client, InternalError("The gateway failed; its log has the reason."))
            tasks.cancel_scope.cancel()

    def _path(self, scope: Scope) -> str:
        given = scope["path_params"]
        if not all(map(_ID.fullmatch, given.values())):
            raise NotFound("There is nothing of that name.")
        query = scope["query_string"].decode("latin-1")
        return self.route.path.format(**given) + (f"?{query}" if query else "")

    async def _relay(self, client: ClientConnection, path: str, body: bytes) -> None:
        headers, upstream = forwarded(client.headers), self.parts.upstream
        async with upstream.send(self.route.method, path, body, headers, timeout=SILENCE) as answer:
            if answer.streams:
                await client.start(answer.status, answer.headers)
                events = EventStream(lambda data: NO_EVENT)
                async for chunk in answer.chunks():
                    if whole := events.feed(chunk):
                        await client.write(whole)
                await client.write(events.end(), more=False)
            else:
                await client.respond(answer.status, answer.headers, await answer.read())

    async def _tell(self, client: ClientConnection, error: GatewayError) -> None:
        """As a response; or, once a stream has begun, as its last event."""
        errors = error_format(self.route.path)
        if client.started:
            await client.write(errors.event(error), more=False)
        else:
            headers = [(b"content-type", b"application/json"), *error.headers()]
            await client.respond(error.status, headers, errors.body(error))

"""One request that is queued, top to bottom: the walk that the package's docstring draws."""

import logging

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive, Scope, Send

from gateway.api.routes import Queued
from gateway.errors import GatewayError, InternalError
from gateway.proxy.call import Call
from gateway.proxy.client_connection import ClientConnection
from gateway.proxy.dispatcher import Dispatcher
from gateway.proxy.reception import Reception
from gateway.telemetry.hub import Telemetry
from gateway.telemetry.tracing import RequestTrace

logger = logging.getLogger("fairlane")


class InferenceEndpoint:
    """`POST` to a route whose work is queued, as a raw ASGI endpoint."""

    def __init__(self, route: Queued, reception: Reception, dispatcher: Dispatcher, telemetry: Telemetry) -> None:
        self._route = route
        self._reception = reception
        self._dispatcher = dispatcher
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = ClientConnection(scope, receive, send, self._reception.client_stall)
        call = Call(self._route, client, scope["scheme"])
        trace = self._telemetry.start(call.route.path, call.arrived_at, client.headers)
        try:
            async with anyio.create_task_group() as tasks:
                # Caught in here, for the group would wrap what leaves it into an ExceptionGroup.
                try:
                    await self._serve(call, trace, tasks)
                except GatewayError as error:
                    await call.fail(error)
                except Exception:
                    logger.exception("request %s failed", call.id)
                    await call.fail(InternalError("The gateway failed; its log has the reason."))
                tasks.cancel_scope.cancel()
        finally:
            self._telemetry.finish(call.record(), trace)

    async def _serve(self, call: Call, trace: RequestTrace, tasks: TaskGroup) -> None:
        caller, request = await self._reception.read(call)
        tasks.start_soon(call.client.watch_leaving, tasks.cancel_scope)
        tasks.start_soon(call.client.watch_reading, tasks.cancel_scope)
        await self._reception.price(call, request, caller)
        await self._dispatcher.serve(call, request, trace, tasks)
        self._reception.compare_count(call)

"""What the gateway answers itself: is it alive, is it ready, who waits, what is counted."""

import json
from time import perf_counter

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gateway.engine.client import EngineClient
from gateway.errors import GatewayError
from gateway.proxy.access import Access
from gateway.proxy.queue_view import entries, page, view
from gateway.proxy.waiting_room import WaitingRoom
from gateway.telemetry.metrics import Metrics

PATHS = ("/queue", "/health", "/health/ready", "/metrics")


class Status:
    def __init__(self, engine: EngineClient, waiting: WaitingRoom, access: Access, metrics: Metrics) -> None:
        self._engine = engine
        self._waiting = waiting
        self._access = access
        self._metrics = metrics

    def routes(self) -> list[Route]:
        endpoints = (self.queue, self.health, self.ready, self.metrics)
        return [Route(path, endpoint) for path, endpoint in zip(PATHS, endpoints, strict=True)]

    async def queue(self, request: Request) -> Response:
        """Callers see their own requests, an admin all of them; a browser gets a page."""
        address = request.client.host if request.client else None
        caller = self._access.identify(address, dict(request.headers.raw))
        found = entries(self._waiting.forecaster, perf_counter())
        answer = view(found, None if caller.rights.admin and not caller.named_user else caller.flow())
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page(answer), headers={"cache-control": "no-store"})
        return Response(json.dumps(answer), media_type="application/json", headers={"cache-control": "no-store"})

    async def health(self, request: Request) -> Response:
        """200 as long as the gateway lives; what it says of the engine is for people to read."""
        return Response(json.dumps(await self._state()), media_type="application/json")

    async def ready(self, request: Request) -> Response:
        """Whether it pays to send a request here: for load balancers and whatever waits for the engine."""
        found = await self._state()
        status = 200 if found == {"status": "ok", "engine": "up"} else 503
        return Response(json.dumps(found), status, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _state(self) -> dict[str, str]:
        try:
            engine = "up" if (await self._engine.get("/health", timeout=2.0)).is_success else "unhealthy"
        except GatewayError as error:
            engine = error.outcome
        return {"status": "draining" if self._waiting.draining else "ok", "engine": engine}

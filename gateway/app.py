"""The composition root: settings in, an ASGI application out. Nothing else creates these objects."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread
import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admission import Admission
from gateway.callers import Callers
from gateway.completion import Route as CompletionRoute
from gateway.config import Settings
from gateway.cost import CostModel
from gateway.decision_log import DecisionLog
from gateway.errors import GatewayError, InternalError, MethodNotAllowed, NotFound
from gateway.estimator import Estimator
from gateway.metrics import Metrics
from gateway.profile import Profile
from gateway.profile import load as load_profile
from gateway.proxy import Completions
from gateway.telemetry import Telemetry
from gateway.tracing import Tracing
from gateway.upstream import Upstream, returned
from gateway.waiting import WaitingRoom
from policies import POLICIES
from policies.base import LANES

logger = logging.getLogger("fairlane")

COMPLETION_ROUTES: tuple[CompletionRoute, ...] = ("/v1/chat/completions", "/v1/completions")

# How often a gateway looks for an engine that is not up yet.
ENGINE_POLL = 2.0

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass
class Gateway:
    """The parts of one running gateway."""

    settings: Settings
    waiting: WaitingRoom
    upstream: Upstream
    telemetry: Telemetry
    callers: Callers
    app: Starlette

    def drain(self) -> None:
        """Shutdown has begun: let nobody in, send away who waits, let finish what runs."""
        admission = self.waiting.admission
        waiting = sum(admission.waiting(lane) for lane in LANES)
        logger.info("draining: %d running may finish, %d waiting get 503", admission.running, waiting)
        self.waiting.drain()

    def cut_off(self) -> None:
        """Time is up: end what still runs, and tell its clients."""
        self.waiting.cut_off()


def create_gateway(settings: Settings, profile: Profile | None = None) -> Gateway:
    """Raises ValueError if the profile cannot be loaded, OSError if a log file cannot be opened."""
    limits = settings.limits
    admission = Admission(POLICIES[settings.policy](), limits)
    files = ExitStack()
    decisions = None
    if settings.decision_log:
        file = files.enter_context(settings.decision_log.open("w", encoding="utf-8", buffering=1))
        decisions = DecisionLog(file.write, settings.policy, admission)
    waiting = WaitingRoom(admission, settings.queue_timeout, decisions)
    estimator = Estimator()
    cost_model = CostModel(profile or load_profile(settings.profile), estimator)
    key = settings.upstream_key
    upstream = Upstream(
        settings.base_url, key=key.get_secret_value() if key else None, timeout=settings.upstream_timeout
    )
    metrics = Metrics(admission, estimator)
    telemetry = Telemetry(Tracing(settings.trace_file), metrics)
    callers = Callers(settings.api_keys, settings.front_end_networks, settings.user_headers)

    async def models(request: Request) -> Response:
        """vLLM's own answer: the gateway serves no models."""
        client = request.client
        callers.identify(client.host if client else None, dict(request.headers.raw))
        answer = await upstream.get("/v1/models")
        return _passed_on(answer)

    async def health(request: Request) -> Response:
        """200 as long as the gateway lives; what it says of the engine is for people to read."""
        try:
            engine = "up" if (await upstream.get("/health", timeout=2.0)).is_success else "unhealthy"
        except GatewayError as error:
            engine = error.code
        status = "draining" if waiting.draining else "ok"
        return Response(json.dumps({"status": status, "engine": engine}), media_type="application/json")

    async def metrics_text(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    completions = [
        Route(
            route,
            Completions(
                route,
                callers,
                cost_model,
                waiting,
                upstream,
                telemetry,
                settings.max_body,
                settings.client_stall,
            ),
            methods=["POST"],
        )
        for route in COMPLETION_ROUTES
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with files:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_find_engine, upstream)
                yield
                tasks.cancel_scope.cancel()
        await upstream.aclose()
        await anyio.to_thread.run_sync(telemetry.tracing.shutdown)

    app = Starlette(
        routes=[
            *completions,
            Route("/v1/models", models),
            Route("/health", health),
            Route("/metrics", metrics_text),
        ],
        exception_handlers={GatewayError: _gateway_error, HTTPException: _http_error, Exception: _bug},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # one line a route: `/v1/models/` is none
    return Gateway(settings, waiting, upstream, telemetry, callers, app)


async def _find_engine(upstream: Upstream) -> None:
    """Say which engine and model were found; wait politely for one that is not up yet."""
    waited = False
    while True:
        try:
            answer = await upstream.get("/v1/models")
            answer.raise_for_status()
            models = ", ".join(_model(entry) for entry in answer.json()["data"])
            logger.info("engine: %s serves %s", upstream.base_url, models)
            return
        except (GatewayError, httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if not waited:
                logger.warning("engine: not there yet, waiting for it (%s)", error)
                waited = True
        await anyio.sleep(ENGINE_POLL)


def _model(entry: dict[str, object]) -> str:
    length = entry.get("max_model_len")
    return f"{entry['id']} (up to {length} tokens)" if length else f"{entry['id']}"


def _passed_on(answer: httpx.Response) -> Response:
    response = Response(answer.content, answer.status_code)
    response.raw_headers = [
        (name, value) for name, value in returned(answer) if name not in (b"content-length", b"content-encoding")
    ] + [(b"content-length", str(len(answer.content)).encode())]
    return response


def _error(error: GatewayError) -> Response:
    response = Response(error.body(), error.status, media_type="application/json")
    response.raw_headers.extend(error.headers())
    return response


async def _gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return _error(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette raises these for what its router does not know."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _error(MethodNotAllowed(f"{request.url.path} does not take {request.method}."))
    routes = ", ".join([*COMPLETION_ROUTES, "/v1/models", "/health", "/metrics"])
    return _error(NotFound(f"There is no {request.url.path} here. There is: {routes}."))


async def _bug(request: Request, error: Exception) -> Response:
    return _error(InternalError("The gateway failed; its log has the reason."))

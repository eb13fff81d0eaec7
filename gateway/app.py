"""The composition root: settings in, an ASGI application out. Nothing else creates these objects."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

import anyio
import anyio.to_thread
import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gateway.admission import Admission
from gateway.callers import Caller, Callers
from gateway.completion import Route as CompletionRoute
from gateway.cost import CostModel
from gateway.decision_log import DecisionLog
from gateway.engine import Engine
from gateway.errors import GatewayError, InternalError, MethodNotAllowed, NotFound
from gateway.event import Event
from gateway.forecaster import Forecaster
from gateway.local_tokenizer import LocalTokenizer
from gateway.metrics import Metrics
from gateway.pace import Pace
from gateway.parts import Parts
from gateway.places import page, places, shown
from gateway.profile import Profile
from gateway.profile import load as load_profile
from gateway.proxy import Completions
from gateway.settings import Settings
from gateway.state_file import StateFile, chosen_path
from gateway.telemetry import Telemetry
from gateway.tokenizer import BoundedTokenizer, EngineTokenizer
from gateway.tracing import Tracing
from gateway.upstream import Upstream, returned
from gateway.waiting import WaitingRoom
from policies import find
from policies.base import LANES

logger = logging.getLogger("fairlane")

COMPLETION_ROUTES: tuple[CompletionRoute, ...] = ("/v1/chat/completions", "/v1/completions")

# Settings that are read once, when the gateway starts.
FIXED = (
    *("host", "port", "upstream", "upstream_key", "upstream_timeout"),
    *("trace_file", "decision_log", "state_file", "tokenizer"),
)


@dataclass
class Gateway:
    """One running gateway."""

    parts: Parts
    app: Starlette

    def drain(self) -> None:
        """Shutdown has begun: let nobody in, send away who waits, let finish what runs."""
        admission = self.parts.waiting.admission
        waiting = sum(admission.waiting(lane) for lane in LANES)
        logger.info("draining: %d running may finish, %d waiting get 503", admission.running, waiting)
        self.parts.waiting.drain()

    def cut_off(self) -> None:
        """Time is up: end what still runs, and tell its clients."""
        self.parts.waiting.cut_off()

    def reconfigure(self, settings: Settings) -> None:
        """Policy, weights, limits, targets, keys and timeouts from now on; nobody loses a place or a permit.

        Raises ValueError if the settings cannot be used; then nothing has changed.
        """
        parts, before = self.parts, self.parts.settings
        profile = load_profile(settings.profile)
        limits = settings.limits(profile)
        fixed = [name for name in FIXED if getattr(settings, name) != getattr(before, name)]
        if fixed:
            logger.warning("%s: a change takes a restart; everything else is in force now", ", ".join(fixed))
        parts.settings = settings
        parts.callers = _callers(settings)
        if profile != parts.cost_model.start:
            parts.cost_model.use(profile)
        parts.waiting.forecaster.pace.shares_steps = settings.engine.long_prefill_threshold > 0
        if settings.policy != before.policy:
            parts.waiting.tell(Event("use", policy=settings.policy))
        parts.waiting.tell(Event("relimit", limits=limits))
        parts.waiting.queue_timeout = settings.queue_timeout
        logger.info("settings are in force: policy %s, %s", settings.policy, limits)


def create_gateway(settings: Settings, profile: Profile | None = None) -> Gateway:
    """Raises ValueError if the profile or the tokenizer cannot be loaded, OSError if a log file cannot be opened."""
    cost_model = CostModel(
        profile or load_profile(settings.profile),
        step_tokens=settings.engine.step_tokens,
        threshold=settings.engine.long_prefill_threshold,
    )
    admission = Admission(find(settings.policy)(), settings.limits(cost_model.profile))
    files = ExitStack()
    decisions = None
    if settings.decision_log:
        file = files.enter_context(settings.decision_log.open("w", encoding="utf-8", buffering=1))
        decisions = DecisionLog(file.write, settings.policy, admission)
    key = settings.upstream_key
    upstream = Upstream(
        settings.base_url, key=key.get_secret_value() if key else None, timeout=settings.upstream_timeout
    )
    metrics = Metrics(admission, cost_model)
    telemetry = Telemetry(Tracing(settings.trace_file), metrics)
    cuts = settings.engine.long_prefill_threshold > 0
    # The profile is asked for each time: it gets better.
    pace = Pace(
        lambda tokens: cost_model.profile.decode(tokens),
        cost_model.step,
        shares_steps=cuts,
        prefill_cost=lambda tokens: cost_model.profile.prefill(tokens),
    )
    forecaster = Forecaster(admission, pace, metrics.forecast_compared)
    waiting = WaitingRoom(admission, settings.queue_timeout, decisions, forecaster)
    parts = Parts(
        settings, _callers(settings), cost_model, waiting, upstream, telemetry, _tokenizer(settings, upstream)
    )
    engine = Engine(parts, _state_file(settings))

    async def models(request: Request) -> Response:
        """vLLM's own answer: the gateway serves no models."""
        _identify(parts, request)
        return _passed_on(await upstream.get("/v1/models"))

    async def health(request: Request) -> Response:
        """200 as long as the gateway lives; what it says of the engine is for people to read."""
        try:
            engine = "up" if (await upstream.get("/health", timeout=2.0)).is_success else "unhealthy"
        except GatewayError as error:
            engine = error.outcome
        status = "draining" if waiting.draining else "ok"
        return Response(json.dumps({"status": status, "engine": engine}), media_type="application/json")

    async def queue(request: Request) -> Response:
        """Callers see their own requests, an admin all of them; a browser gets a page."""
        caller = _identify(parts, request)
        found = places(waiting.forecaster, perf_counter())
        answer = shown(found, None if caller.admin and not caller.named_user else caller.flow())
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page(answer), headers={"cache-control": "no-store"})
        return Response(json.dumps(answer), media_type="application/json", headers={"cache-control": "no-store"})

    async def metrics_text(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with files:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.run)
                yield
                tasks.cancel_scope.cancel()
            await engine.keep()
        await upstream.aclose()
        await anyio.to_thread.run_sync(telemetry.tracing.shutdown)

    app = Starlette(
        routes=[
            *(Route(route, Completions(route, parts), methods=["POST"]) for route in COMPLETION_ROUTES),
            Route("/v1/models", models),
            Route("/queue", queue),
            Route("/health", health),
            Route("/metrics", metrics_text),
        ],
        exception_handlers={GatewayError: _gateway_error, HTTPException: _http_error, Exception: _bug},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # one line a route: `/v1/models/` is none
    return Gateway(parts, app)


def _tokenizer(settings: Settings, upstream: Upstream) -> BoundedTokenizer | None:
    match settings.tokenizer:
        case "off":
            return None
        case "engine":
            return BoundedTokenizer(EngineTokenizer(upstream))
        case path:
            return BoundedTokenizer(LocalTokenizer(path))


def _state_file(settings: Settings) -> StateFile | None:
    path = chosen_path(settings)
    return StateFile(path) if path else None


def _callers(settings: Settings) -> Callers:
    return Callers(settings.api_keys, settings.front_end_networks, settings.user_headers)


def _identify(parts: Parts, request: Request) -> Caller:
    return parts.callers.identify(request.client.host if request.client else None, dict(request.headers.raw))


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
    routes = ", ".join([*COMPLETION_ROUTES, "/v1/models", "/queue", "/health", "/metrics"])
    return _error(NotFound(f"There is no {request.url.path} here. There is: {routes}."))


async def _bug(request: Request, error: Exception) -> Response:
    return _error(InternalError("The gateway failed; its log has the reason."))

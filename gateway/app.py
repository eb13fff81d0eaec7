"""The composition root: settings in, an ASGI application out. Nothing else creates these objects."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gateway import from_settings
from gateway.api.routes import PASSED, QUEUED, REFUSED, error_format
from gateway.config.settings import Settings
from gateway.engine.client import EngineClient
from gateway.engine.monitor import EngineMonitor
from gateway.errors import GatewayError, InternalError, MethodNotAllowed, NotFound
from gateway.forecasting.forecaster import Forecaster
from gateway.forecasting.speed import EngineSpeed
from gateway.identity.callers import Caller, Callers
from gateway.identity.keys import KeysError
from gateway.identity.missing_users import MissingUserDetector
from gateway.parts import Parts
from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.proxy.inference import InferenceEndpoint
from gateway.proxy.passthrough import Passthrough
from gateway.proxy.queue_view import page, places, shown
from gateway.proxy.waiting_room import WaitingRoom
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Event
from gateway.slicing.circuit_breaker import SliceCircuitBreaker
from gateway.slicing.planner import Slicer
from gateway.storage.keys_file import KeysFile
from gateway.storage.profile_file import load as load_profile
from gateway.storage.state_file import StateFile, chosen_path
from gateway.telemetry.decision_log import DecisionLog
from gateway.telemetry.hub import Telemetry
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import Tracing
from gateway.tokenizers.engine import BoundedTokenizer, EngineTokenizer
from gateway.tokenizers.local import LocalTokenizer
from policies import find
from policies.base import LANES

logger = logging.getLogger("fairlane")

# How often it is seen whether the keys file has changed: one `stat` of a local file.
KEYS_POLL = 1.0

# What the gateway answers itself.
OWN = ("/queue", "/health", "/health/ready", "/metrics")

# Settings that are read once, when the gateway starts.
FIXED = (
    *("host", "port", "upstream", "upstream_key", "upstream_timeout", "max_headers", "max_connections"),
    *("cors_origins", "tls_certificate", "tls_key"),
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
        limits = from_settings.limits(settings, profile)
        keys_file = _keys_file(settings)
        fixed = [name for name in FIXED if getattr(settings, name) != getattr(before, name)]
        if fixed:
            logger.warning("%s: a change takes a restart; everything else is in force now", ", ".join(fixed))
        parts.settings = settings
        parts.keys_file = keys_file
        parts.callers = _callers(settings, keys_file)
        parts.background = from_settings.background_rules(settings)
        parts.cost_model.reconfigure(profile, settings.engine.step_tokens, settings.engine.long_prefill_threshold)
        parts.slicer = _slicer(settings, parts.cost_model)
        parts.waiting.forecaster.pace.shares_steps = settings.engine.long_prefill_threshold > 0
        if settings.policy != before.policy:
            parts.waiting.tell(Event("use", policy=settings.policy))
        parts.waiting.tell(Event("relimit", limits=limits))
        parts.waiting.queue_timeout = settings.queue_timeout
        parts.upstream.grace = settings.engine_grace
        logger.info("settings are in force: policy %s, %s", settings.policy, limits)


def create_gateway(settings: Settings, profile: Profile | None = None) -> Gateway:
    """Raises ValueError if profile, tokenizer or keys cannot be loaded, OSError if a log file cannot be opened."""
    cost_model = CostModel(
        profile or load_profile(settings.profile),
        step_tokens=settings.engine.step_tokens,
        threshold=settings.engine.long_prefill_threshold,
    )
    admission = Admission(find(settings.policy)(), from_settings.limits(settings, cost_model.profile))
    files = ExitStack()
    decisions = None
    if settings.decision_log:
        file = files.enter_context(settings.decision_log.open("w", encoding="utf-8", buffering=1))
        decisions = DecisionLog(file.write, settings.policy, admission)
    slice_guard = SliceCircuitBreaker()
    metrics = Metrics(admission, cost_model, lambda: len(slice_guard.off(perf_counter())))
    key = settings.upstream_key
    upstream = EngineClient(
        settings.base_url,
        key=key.get_secret_value() if key else None,
        timeout=settings.upstream_timeout,
        grace=settings.engine_grace,
        on_retry=metrics.engine_retried,
    )
    telemetry = Telemetry(Tracing(settings.trace_file), metrics)
    cuts = settings.engine.long_prefill_threshold > 0
    # The profile is asked for each time: it gets better.
    pace = EngineSpeed(
        lambda tokens: cost_model.profile.decode(tokens),
        cost_model.step,
        shares_steps=cuts,
        prefill_cost=lambda tokens: cost_model.profile.prefill(tokens),
    )
    forecaster = Forecaster(admission, pace, metrics.forecast_compared)
    waiting = WaitingRoom(admission, settings.queue_timeout, decisions, forecaster)
    keys_file = _keys_file(settings)
    parts = Parts(
        settings=settings,
        keys_file=keys_file,
        callers=_callers(settings, keys_file),
        background=from_settings.background_rules(settings),
        unnamed=MissingUserDetector(),
        cost_model=cost_model,
        waiting=waiting,
        upstream=upstream,
        telemetry=telemetry,
        tokenizer=_tokenizer(settings, upstream),
        slicer=_slicer(settings, cost_model),
        slice_guard=slice_guard,
    )
    engine = EngineMonitor(parts, _state_file(settings))

    async def state() -> dict[str, str]:
        try:
            engine = "up" if (await upstream.get("/health", timeout=2.0)).is_success else "unhealthy"
        except GatewayError as error:
            engine = error.outcome
        return {"status": "draining" if waiting.draining else "ok", "engine": engine}

    async def health(request: Request) -> Response:
        """200 as long as the gateway lives; what it says of the engine is for people to read."""
        return Response(json.dumps(await state()), media_type="application/json")

    async def ready(request: Request) -> Response:
        """Whether it pays to send a request here: for load balancers and whatever waits for the engine."""
        found = await state()
        status = 200 if found == {"status": "ok", "engine": "up"} else 503
        return Response(json.dumps(found), status, media_type="application/json")

    async def queue(request: Request) -> Response:
        """Callers see their own requests, an admin all of them; a browser gets a page."""
        caller = _identify(parts, request)
        found = places(waiting.forecaster, perf_counter())
        answer = shown(found, None if caller.rights.admin and not caller.named_user else caller.flow())
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
                tasks.start_soon(_watch_keys, parts)
                yield
                tasks.cancel_scope.cancel()
            await engine.keep()
        await upstream.aclose()
        await anyio.to_thread.run_sync(telemetry.tracing.shutdown)

    app = Starlette(
        routes=[
            *(Route(route.path, InferenceEndpoint(route.path, route.api, parts), methods=["POST"]) for route in QUEUED),
            *(Route(route.path, Passthrough(route, parts), methods=[route.method]) for route in PASSED),
            Route("/queue", queue),
            Route("/health", health),
            Route("/health/ready", ready),
            Route("/metrics", metrics_text),
        ],
        exception_handlers={GatewayError: _gateway_error, HTTPException: _http_error, Exception: _bug},
        middleware=_cors(settings.cors_origins),
        lifespan=lifespan,
    )
    return Gateway(parts, app)


def _tokenizer(settings: Settings, upstream: EngineClient) -> BoundedTokenizer | None:
    match settings.tokenizer:
        case "off":
            return None
        case "engine":
            return BoundedTokenizer(EngineTokenizer(upstream))
        case path:
            return BoundedTokenizer(LocalTokenizer(path))


def _slicer(settings: Settings, cost_model: CostModel) -> Slicer | None:
    slicing = from_settings.slicing(settings)
    return Slicer(slicing, cost_model) if slicing else None


def _state_file(settings: Settings) -> StateFile | None:
    path = chosen_path(settings.state_file, settings.base_url)
    return StateFile(path) if path else None


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    """It answers a browser's preflights, which have no key, and adds headers; no body passes through its hands."""
    if not origins:
        return []
    exposed = ["x-request-id", "x-fairlane-queue-ms", "x-fairlane-cost-s", "x-fairlane-slices", "retry-after"]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=exposed,
        )
    ]


def _keys_file(settings: Settings) -> KeysFile:
    """Read. Raises KeysError, OSError."""
    file = KeysFile(settings.keys_file)
    file.refresh()
    return file


def _callers(settings: Settings, file: KeysFile) -> Callers:
    # An empty keys file keeps everybody out, and lets nobody in.
    return Callers(
        [*from_settings.api_keys(settings), *file.keys],
        settings.front_end_networks,
        settings.user_headers,
        closed=file.path is not None,
    )


def _identify(parts: Parts, request: Request) -> Caller:
    return parts.callers.identify(request.client.host if request.client else None, dict(request.headers.raw))


async def _watch_keys(parts: Parts) -> None:
    """A change to the keys file is in force within a second; one that cannot be used changes nothing."""
    while True:
        await anyio.sleep(KEYS_POLL)
        file = parts.keys_file
        try:
            if file.refresh():
                parts.callers = _callers(parts.settings, file)
                logger.info("%s: %d keys are in force", file.path, len(file.keys))
        except (KeysError, OSError) as error:
            logger.error("the keys stay as they were: %s", error)


async def _gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    response = Response(error_format(request.url.path).body(error), error.status, media_type="application/json")
    response.raw_headers.extend(error.headers())
    return response


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette raises these for what its router does not know."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        response = await _gateway_error(request, MethodNotAllowed(f"{path} does not take {request.method}."))
        response.headers.update(error.headers or {})  # which methods it takes
        return response
    routes = ", ".join([*dict.fromkeys(route.path for route in (*QUEUED, *PASSED)), *OWN])
    return await _gateway_error(request, NotFound(REFUSED.get(path) or f"There is no {path} here. There is: {routes}."))


async def _bug(request: Request, error: Exception) -> Response:
    return await _gateway_error(request, InternalError("The gateway failed; its log has the reason."))

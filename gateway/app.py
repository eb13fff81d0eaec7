"""The composition root: settings in, an ASGI application out. Nothing else creates these objects."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from gateway import from_settings
from gateway.api.routes import PASSED, QUEUED
from gateway.config.fields import restart_needed
from gateway.config.settings import Settings
from gateway.engine.client import EngineClient
from gateway.engine.monitor import EngineMonitor
from gateway.forecasting.forecaster import Forecaster
from gateway.lifecycle.core import Core
from gateway.pricing.cost_model import CostModel
from gateway.pricing.profile import Profile
from gateway.proxy.access import Access, read_keys
from gateway.proxy.dispatcher import Dispatcher
from gateway.proxy.fallback import EXCEPTION_HANDLERS
from gateway.proxy.inference import InferenceEndpoint
from gateway.proxy.keepalive import Keepalives
from gateway.proxy.passthrough import Passthrough
from gateway.proxy.reception import Reception
from gateway.proxy.sliced_prefill import SlicedPrefill
from gateway.proxy.status import Status
from gateway.proxy.waiting_room import Observer, WaitingRoom
from gateway.scheduling.events import LimitsChanged, PolicyChanged
from gateway.storage.profile_file import load as load_profile
from gateway.telemetry.decision_log import DecisionLog
from gateway.telemetry.hub import Telemetry
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import Tracing
from gateway.tokenizers.engine import BoundedTokenizer, EngineTokenizer
from gateway.tokenizers.local import LocalTokenizer
from policies import find

logger = logging.getLogger("fairlane")


class Reconfigurable(Protocol):
    def reconfigure(self, settings: Settings) -> None:
        """These settings from now on. Raises nothing: what could fail has been done before."""


@dataclass
class Gateway:
    """One running gateway."""

    settings: Settings
    app: Starlette
    core: Core
    waiting: WaitingRoom
    access: Access
    telemetry: Telemetry
    components: tuple[Reconfigurable, ...]

    def drain(self) -> None:
        """Shutdown has begun: let nobody in, send away who waits, let finish what runs."""
        self.waiting.drain()

    def cut_off(self) -> None:
        """Time is up: end what still runs, and tell its clients."""
        self.waiting.cut_off()

    def reconfigure(self, settings: Settings) -> None:
        """These settings from now on, but for those that take a restart; nobody loses a place or a permit.

        Raises ValueError, OSError if the settings cannot be used; then nothing has changed.
        """
        profile = load_profile(settings.profile)
        limits = from_settings.limits(settings, profile)
        keys_file = read_keys(settings)
        if names := restart_needed(self.settings, settings):
            logger.warning("%s: a change takes a restart; everything else is in force now", ", ".join(names))
        self._reconfigure_core(settings, profile)
        self.access.reconfigure(settings, keys_file)
        for component in self.components:
            component.reconfigure(settings)
        if settings.policy != self.settings.policy:
            self.waiting.apply(PolicyChanged(settings.policy))
        self.waiting.apply(LimitsChanged(limits))
        logging.getLogger().setLevel(settings.log_level.upper())
        self.settings = settings
        logger.info("settings are in force: policy %s, %s", settings.policy, limits)

    def _reconfigure_core(self, settings: Settings, profile: Profile) -> None:
        engine = settings.engine
        self.core.cost_model.reconfigure(profile, engine.step_tokens, engine.long_prefill_threshold)
        self.core.speed.shares_steps = engine.long_prefill_threshold > 0
        self.core.set_slicing(from_settings.slicing(settings))


def create_gateway(settings: Settings, profile: Profile | None = None) -> Gateway:
    """Raises ValueError if profile, tokenizer or keys cannot be loaded, OSError if a log file cannot be opened."""
    core = _core(settings, profile or load_profile(settings.profile))
    files = ExitStack()
    decisions = _decision_log(settings, core, files)
    metrics = Metrics(core.admission, core.cost_model, lambda: len(core.circuit_breaker.off(perf_counter())))
    telemetry = Telemetry(Tracing(settings.trace_file), metrics)
    engine = _engine_client(settings, metrics)
    forecaster = Forecaster(core.admission, core.speed, metrics.forecast_compared)
    waiting = WaitingRoom(settings, core.admission, forecaster, decisions)
    access = Access(settings)
    reception = Reception(settings, access, core, waiting, _tokenizer(settings, engine))
    keepalives = Keepalives(settings, forecaster, engine)
    dispatcher = Dispatcher(settings, waiting, engine, SlicedPrefill(engine, waiting, metrics), keepalives)
    monitor = EngineMonitor(settings, core, engine, waiting.apply, metrics.engine_seen)
    status = Status(engine, waiting, access, metrics)

    queued = [
        Route(each.path, InferenceEndpoint(each, reception, dispatcher, telemetry), methods=["POST"]) for each in QUEUED
    ]
    passed = [Route(each.path, Passthrough(each, reception, engine), methods=[each.method]) for each in PASSED]
    app = Starlette(
        routes=[*queued, *passed, *status.routes()],
        exception_handlers=EXCEPTION_HANDLERS,
        middleware=_cors(settings.cors_origins),
        lifespan=_lifespan(monitor, access, engine, telemetry, files),
    )
    components = (waiting, engine, reception, dispatcher, keepalives, monitor)
    return Gateway(settings, app, core, waiting, access, telemetry, components)


Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def _lifespan(
    monitor: EngineMonitor, access: Access, engine: EngineClient, telemetry: Telemetry, files: ExitStack
) -> Lifespan:
    """What runs beside the requests, and what is closed behind the last one."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with files:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(monitor.run)
                tasks.start_soon(access.watch_keys)
                yield
                tasks.cancel_scope.cancel()
            await monitor.keep()
        await engine.aclose()
        await anyio.to_thread.run_sync(telemetry.tracing.shutdown)

    return lifespan


def _core(settings: Settings, profile: Profile) -> Core:
    step_tokens, threshold = settings.engine.step_tokens, settings.engine.long_prefill_threshold
    return Core.create(
        CostModel(profile, step_tokens=step_tokens, threshold=threshold),
        find(settings.policy)(),
        from_settings.limits(settings, profile),
        from_settings.slicing(settings),
        shares_steps=threshold > 0,
    )


def _decision_log(settings: Settings, core: Core, files: ExitStack) -> Observer | None:
    if not settings.decision_log:
        return None
    file = files.enter_context(settings.decision_log.open("w", encoding="utf-8", buffering=1))
    return DecisionLog(file.write, settings.policy, core.admission)


def _engine_client(settings: Settings, metrics: Metrics) -> EngineClient:
    key = settings.upstream_key
    return EngineClient(
        settings.base_url,
        key=key.get_secret_value() if key else None,
        timeout=settings.upstream_timeout,
        grace=settings.engine_grace,
        on_retry=metrics.engine_retried,
    )


def _tokenizer(settings: Settings, engine: EngineClient) -> BoundedTokenizer | None:
    match settings.tokenizer:
        case "off":
            return None
        case "engine":
            return BoundedTokenizer(EngineTokenizer(engine))
        case path:
            return BoundedTokenizer(LocalTokenizer(path))


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

"""The engine behind the gateway, as it is got to know: which model and version it is, what its metrics say, and what
was learned of it, which is kept from one start of the gateway to the next. Nothing that it sends ends these tasks.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import anyio
import anyio.to_thread

from gateway import from_settings
from gateway.config.settings import Settings
from gateway.engine.client import EngineClient
from gateway.lifecycle.core import Core
from gateway.pricing.snapshot import CostSnapshot
from gateway.scheduling.events import Corrected, Event, LimitsChanged
from gateway.scheduling.reconciler import EngineState, Reconciler
from gateway.storage.state_file import StateFile, chosen_path

logger = logging.getLogger("fairlane")

# How often a gateway looks for an engine that is not up yet.
ENGINE_POLL = 2.0

# How often the engine's metrics are read, and how long that may take.
ENGINE_SCRAPE = 1.0

# Scrapes that fail in a row, after which an engine that is back may be another one.
GONE = 3

# How often what was learned is kept, and makes new limits, where a target depends on it.
KEEP = 60.0
RELIMIT = 10.0


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine says that it is.

    name     its model and the version of its server: what was learned of another says nothing about this one
    lengths  of each model that it serves, by the name it is served under, the longest context; None if it is not told
    """

    name: str
    lengths: dict[str, int | None]

    @property
    def max_model_len(self) -> int | None:
        """None where it is not told of each."""
        known = [length for length in self.lengths.values() if isinstance(length, int) and length > 0]
        return max(known) if known and len(known) == len(self.lengths) else None


async def served(upstream: EngineClient) -> Served:
    """Raises whatever comes of an engine that is not there, or of something that is none."""
    answer = await upstream.get("/v1/models")
    answer.raise_for_status()
    cards: list[dict[str, Any]] = answer.json()["data"]
    lengths = {str(card["id"]): card.get("max_model_len") for card in cards}
    # The model's own name, where it is served under another; adapters are further cards.
    name = str(cards[0].get("root") or cards[0]["id"])
    return Served(f"{name} on vLLM {await _version(upstream)}", lengths)


async def _version(upstream: EngineClient) -> str:
    try:
        answer = await upstream.get("/version")
        answer.raise_for_status()
        return str(answer.json()["version"])
    except Exception:
        return "?"


class EngineMonitor:
    """Told of the engine, it lets the core know: corrections, limits, prices, the longest prompt.

    `apply` is the waiting room's; `report` is told what the engine's metrics say, or None where they cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        core: Core,
        client: EngineClient,
        apply: Callable[[Event], object],
        report: Callable[[EngineState | None], object],
    ) -> None:
        self._core = core
        self._client = client
        self._apply = apply
        self._report = report
        path = chosen_path(settings.state_file, settings.base_url)
        self._state_file = StateFile(path) if path else None
        self._engine: str | None = None  # as it is called, once it has been found
        self._kept = 0
        self._started: float | None = None
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        self._settings = settings

    async def run(self) -> None:
        """Until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._find)
            tasks.start_soon(self._watch)
            tasks.start_soon(self._keep_on)
            tasks.start_soon(self._follow_target)

    async def keep(self) -> None:
        """Write down what was learned, if there is anything new. The engine must be known, for whom it is true."""
        if self._state_file is None or self._engine is None:
            return
        if await anyio.to_thread.run_sync(self._state_file.replaced):
            await self._take_over(self._state_file)
            return
        if self._observed == self._kept:
            return
        observed = self._observed
        snapshot = CostSnapshot.capture(self._core.cost_model, self._engine, self._settings.profile)
        if await anyio.to_thread.run_sync(self._state_file.write, snapshot):
            self._kept = observed

    @property
    def _observed(self) -> int:
        """Samples so far."""
        model = self._core.cost_model
        return sum(each.regression.observations for each in (model.prefill, model.step, model.estimator))

    async def _find(self) -> None:
        """Say which engine and model were found; wait politely for one that is not up yet."""
        waited = False
        while True:
            try:
                found = await served(self._client)
                break
            except Exception as error:
                if not waited:
                    logger.warning("engine: not there yet, waiting for it (%s)", error)
                    waited = True
            await anyio.sleep(ENGINE_POLL)
        models = ", ".join(
            f"{name} (up to {length} tokens)" if length else name for name, length in found.lengths.items()
        )
        logger.info("engine: %s serves %s", self._client.base_url, models)
        self._core.max_model_len = found.max_model_len or self._core.max_model_len
        await self._meet(found.name)

    async def _meet(self, engine: str) -> None:
        """What was learned of another engine says nothing about this one."""
        before, self._engine = self._engine, engine
        if engine == before:
            return
        if before is not None:
            logger.warning("engine: it was %s and is %s now: learning what it costs starts anew", before, engine)
            self._core.cost_model.reset()
            return
        kept = await anyio.to_thread.run_sync(self._state_file.read) if self._state_file else None
        if kept is None:
            return
        if kept.engine != engine:
            logger.info("engine: what was learned of %s is of no use for %s", kept.engine, engine)
            return
        kept.apply_to(self._core.cost_model)
        self._kept = self._observed
        logger.info("engine: %d samples of earlier runs tell what it costs", kept.samples)

    async def _take_over(self, state_file: StateFile) -> None:
        """Somebody has measured the engine while we ran, as `fairlane calibrate` does, and knows its seconds better."""
        model, kept = self._core.cost_model, await anyio.to_thread.run_sync(state_file.read)
        if kept is None or kept.engine != self._engine:
            return
        model.reset_curves()
        kept.apply_to(model)
        self._kept = self._observed
        logger.info("engine: %s was written anew: its %d samples tell what it costs", state_file.path, kept.samples)

    async def _watch(self) -> None:
        """Scrape the engine and let admission know, again and again. What cannot be had corrects nothing."""
        reconciler, correction = Reconciler(), Corrected()
        lost = 0
        while True:
            state = await self._scrape()
            self._report(state)
            if state:
                if state.started != self._started or lost >= GONE:
                    await self._look_again(state)
                lost = 0
                self._tell_prefixes(state)
                ledger = self._core.admission.ledger
                seen = reconciler.observe(state, ledger.seats, ledger.kv_tokens, ledger.limits.kv_tokens)
            else:
                seen = reconciler.lost()
                lost += 1
            if seen != correction:
                correction = seen
                self._apply(correction)
            await anyio.sleep(ENGINE_SCRAPE)

    async def _scrape(self) -> EngineState | None:
        try:
            answer = await self._client.get("/metrics", timeout=ENGINE_SCRAPE)
            return EngineState.read(answer.content) if answer.is_success else None
        except Exception:
            return None

    async def _look_again(self, state: EngineState) -> None:
        """Its process has started since, or it was away: it may be another one."""
        if self._engine is not None and (self._started is not None or state.started is None):
            self._core.cost_model.prefixes.clear()
            self._core.circuit_breaker.reset()
            await self._find()
        self._started = state.started

    def _tell_prefixes(self, state: EngineState) -> None:
        prefixes = self._core.cost_model.prefixes
        prefixes.block = state.block or prefixes.block
        prefixes.capacity = state.kv_capacity or prefixes.capacity
        if state.caches is not None:
            prefixes.enabled = state.caches
        if state.cache_hits is not None:
            prefixes.compare_hits(state.cache_hits)

    async def _keep_on(self) -> None:
        while True:
            await anyio.sleep(KEEP)
            await self.keep()

    async def _follow_target(self) -> None:
        """The sequences that meet `tpot_target`, by what a step is known to take by now."""
        while True:
            await anyio.sleep(RELIMIT)
            if self._settings.tpot_target is None:
                continue
            limits = from_settings.limits(self._settings, self._core.cost_model.profile)
            before = self._core.admission.limits.max_num_seqs
            # A seat more or less is noise, and a new limit is an event for everybody.
            if abs(limits.max_num_seqs - before) > ceil(before / 20):
                self._apply(LimitsChanged(limits))

"""The engine behind the gateway, as it is got to know: which model and version it is, what its metrics say, and what
was learned of it, which is kept from one start of the gateway to the next. Nothing that it sends ends these tasks.
"""

import logging
from dataclasses import dataclass
from math import ceil
from typing import Any

import anyio
import anyio.to_thread

from gateway import from_settings
from gateway.engine.client import EngineClient
from gateway.parts import Parts
from gateway.pricing.snapshot import CostSnapshot
from gateway.scheduling.events import Correction, Event
from gateway.scheduling.reconciler import EngineState, Reconciler
from gateway.storage.state_file import StateFile

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
    def __init__(self, parts: Parts, state_file: StateFile | None) -> None:
        self._parts = parts
        self._state_file = state_file
        self._kept = 0
        self._started: float | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._find)
            tasks.start_soon(self._watch)
            tasks.start_soon(self._keep_on)
            tasks.start_soon(self._relimit)

    async def keep(self) -> None:
        """Write down what was learned, if there is anything new. The engine must be known, for whom it is true."""
        parts = self._parts
        if self._state_file is None or parts.engine is None:
            return
        if await anyio.to_thread.run_sync(self._state_file.replaced):
            await self._take_over(self._state_file)
            return
        if self._seen == self._kept:
            return
        seen = self._seen
        learned = CostSnapshot.capture(parts.cost_model, parts.engine, parts.settings.profile)
        if await anyio.to_thread.run_sync(self._state_file.write, learned):
            self._kept = seen

    @property
    def _seen(self) -> int:
        model = self._parts.cost_model
        return (
            model.prefill.regression.observations
            + model.step.regression.observations
            + model.estimator.regression.observations
        )

    async def _find(self) -> None:
        """Say which engine and model were found; wait politely for one that is not up yet."""
        upstream = self._parts.upstream
        waited = False
        while True:
            try:
                found = await served(upstream)
                break
            except Exception as error:
                if not waited:
                    logger.warning("engine: not there yet, waiting for it (%s)", error)
                    waited = True
            await anyio.sleep(ENGINE_POLL)
        models = ", ".join(
            f"{name} (up to {length} tokens)" if length else name for name, length in found.lengths.items()
        )
        logger.info("engine: %s serves %s", upstream.base_url, models)
        self._parts.max_model_len = found.max_model_len or self._parts.max_model_len
        await self._meet(found.name)

    async def _meet(self, engine: str) -> None:
        """What was learned of another engine says nothing about this one."""
        parts, before = self._parts, self._parts.engine
        if engine == before:
            return
        parts.engine = engine
        if before is not None:
            logger.warning("engine: it was %s and is %s now: learning what it costs starts anew", before, engine)
            parts.cost_model.reset()
            return
        kept = await anyio.to_thread.run_sync(self._state_file.read) if self._state_file else None
        if kept is None:
            return
        if kept.engine != engine:
            logger.info("engine: what was learned of %s is of no use for %s", kept.engine, engine)
            return
        kept.apply_to(parts.cost_model)
        self._kept = self._seen
        logger.info("engine: %d samples of earlier runs tell what it costs", kept.samples)

    async def _take_over(self, state_file: StateFile) -> None:
        """Somebody has measured the engine while we ran, as `fairlane calibrate` does, and knows its seconds better."""
        model, kept = self._parts.cost_model, await anyio.to_thread.run_sync(state_file.read)
        if kept is None or kept.engine != self._parts.engine:
            return
        model.reset_curves()
        kept.apply_to(model)
        self._kept = self._seen
        logger.info("engine: %s was written anew: its %d samples tell what it costs", state_file.path, kept.samples)

    async def _watch(self) -> None:
        """Scrape the engine and let admission know, again and again. What cannot be had corrects nothing."""
        parts, feedback, correction = self._parts, Reconciler(), Correction()
        lost = 0
        while True:
            ledger = parts.waiting.admission.ledger
            try:
                answer = await parts.upstream.get("/metrics", timeout=ENGINE_SCRAPE)
                state = EngineState.read(answer.content) if answer.is_success else None
            except Exception:
                state = None
            parts.telemetry.metrics.engine_seen(state)
            if state:
                if state.started != self._started or lost >= GONE:
                    await self._look_again(state)
                lost = 0
                self._tell_prefixes(state)
                seen = feedback.seen(state, ledger.seats, ledger.kv_tokens, ledger.limits.kv_tokens)
            else:
                seen = feedback.lost()
                lost += 1
            if seen != correction:
                correction = seen
                parts.waiting.tell(Event("correct", correction=correction))
            await anyio.sleep(ENGINE_SCRAPE)

    async def _look_again(self, state: EngineState) -> None:
        """Its process has started since, or it was away: it may be another one."""
        if self._parts.engine is not None and (self._started is not None or state.started is None):
            self._parts.cost_model.prefixes.clear()
            self._parts.slice_guard.forget()
            await self._find()
        self._started = state.started

    def _tell_prefixes(self, state: EngineState) -> None:
        prefixes = self._parts.cost_model.prefixes
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

    async def _relimit(self) -> None:
        """The sequences that meet `tpot_target`, by what a step is known to take by now."""
        while True:
            await anyio.sleep(RELIMIT)
            parts = self._parts
            if parts.settings.tpot_target is None:
                continue
            limits = from_settings.limits(parts.settings, parts.cost_model.profile)
            before = parts.waiting.admission.limits.max_num_seqs
            # A seat more or less is noise, and a new limit is an event for everybody.
            if abs(limits.max_num_seqs - before) > ceil(before / 20):
                parts.waiting.tell(Event("relimit", limits=limits))

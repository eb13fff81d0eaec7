"""The waiting room: where requests are until admission dispatches them.

All state changes happen between awaits, on one event loop: there are no locks, and a permit can neither leak nor
come back twice, wherever a request is cancelled.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import ceil
from random import uniform
from time import perf_counter

import anyio

from gateway.config.settings import Settings
from gateway.errors import Draining, GatewayError, QueueTimeout, Rejected
from gateway.forecasting.forecaster import Forecaster
from gateway.lifecycle.lifecycle import Lifecycle
from gateway.outcome import Outcome
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Event, event_name
from policies.base import LANES, Job

logger = logging.getLogger("fairlane")

# Told of each event when it has happened, and who was dispatched by it.
Observer = Callable[[Event, list[Job]], None]


class _Waiter:
    def __init__(self) -> None:
        self.wake = anyio.Event()
        self.granted = False
        self.evicted: GatewayError | None = None
        self.scope = anyio.CancelScope()


class WaitingRoom:
    def __init__(
        self, settings: Settings, admission: Admission, forecaster: Forecaster, observer: Observer | None = None
    ) -> None:
        self.admission = admission
        self.forecaster = forecaster
        self.draining = False
        self._observer = observer
        self._waiters: dict[Job, _Waiter] = {}
        self._nobody_decodes = anyio.Event()
        self.reconfigure(settings)

    def reconfigure(self, settings: Settings) -> None:
        self.queue_timeout = settings.queue_timeout

    @asynccontextmanager
    async def admitted(self, life: Lifecycle) -> AsyncIterator[None]:
        """Wait for the job's turn, hold its permit, give it back. Raises Rejected, QueueTimeout or Draining."""
        job = life.job
        self._check(job)
        waiter = self._waiters[job] = _Waiter()
        life.arrived()
        try:
            if not waiter.granted:
                with anyio.move_on_after(self.queue_timeout):
                    await waiter.wake.wait()
            if waiter.evicted:
                raise waiter.evicted
            # A grant may have come in the very moment of the timeout: then it holds.
            if not waiter.granted:
                raise self._timeout(job)
            life.dispatched(perf_counter())
            with waiter.scope:
                yield
            if waiter.evicted and waiter.scope.cancelled_caught:
                raise waiter.evicted
        finally:
            # No await in here: nothing can come between a request's end and its permit's return.
            del self._waiters[job]
            life.end()

    async def requeued(self, life: Lifecycle) -> None:
        """Let the job's next slice wait for its turn, however long. Until then it holds no seat. Whoever has begun is
        not sent away: not by `queue_timeout`, nor while the gateway drains."""
        waiter = self._waiters[life.job]
        waiter.wake = anyio.Event()
        life.requeue(perf_counter())
        await waiter.wake.wait()
        life.dispatched(perf_counter())

    async def pause(self, seconds: float) -> None:
        """Leave the engine to those who decode, as long as there are any."""
        with anyio.move_on_after(seconds):
            while self.forecaster.speed.sequences:
                await self._nobody_decodes.wait()

    def drain(self) -> None:
        """Let nobody else in, and send away whoever waits. What runs goes on."""
        self.draining = True
        waiting = sum(map(self.admission.waiting, LANES))
        logger.info("draining: %d running may finish, %d waiting get 503", self.admission.running, waiting)
        for waiter in self._waiters.values():
            if not waiter.granted:
                waiter.evicted = Draining(_DRAINING)
                waiter.wake.set()

    def cut_off(self) -> None:
        """End what is in the engine, too."""
        for waiter in self._waiters.values():
            waiter.evicted = Draining(_DRAINING)
            waiter.scope.cancel()

    def apply(self, event: Event) -> None:
        """Let it happen, and wake whoever is dispatched by it."""
        dispatched = self.admission.apply(event)
        for job in dispatched:
            waiter = self._waiters[job]
            waiter.granted = True
            waiter.wake.set()
        # From here on nothing may fail: what has happened has happened, whoever else would like to know of it.
        try:
            self.forecaster.observe(event, dispatched, perf_counter())
        except Exception:
            logger.exception("the forecast failed at %s", event_name(type(event)))
        if not self.forecaster.speed.sequences and self._nobody_decodes.statistics().tasks_waiting:
            self._nobody_decodes.set()
            self._nobody_decodes = anyio.Event()
        if self._observer:
            try:
                self._observer(event, dispatched)
            except Exception:
                logger.exception("the decision log cannot be written; it ends here")
                self._observer = None

    def _check(self, job: Job) -> None:
        if self.draining:
            raise Draining(_DRAINING)
        now, limits = perf_counter(), self.admission.limits
        match self.admission.rejects(job):
            case None if not self.forecaster.meets(job, now):
                outcome, why = Outcome.DEADLINE_UNREACHABLE, "its first token cannot be there by x-fairlane-deadline"
            case None:
                return
            case Outcome.USER_LIMIT as outcome:
                why = f"{limits.queued(job)} of your requests wait already (flow_queued)"
            case outcome:
                why = f"the queue is full (max_queued = {limits.max_queued}, max_queued_s = {limits.max_queued_s})"
        raise Rejected(outcome, f"Not queued: {why}.", _jittered(self.forecaster.retry_after(job, now)))

    def _timeout(self, job: Job) -> QueueTimeout:
        error = QueueTimeout(f"Waited for {self.queue_timeout:g} s (queue_timeout) and it is not your turn yet.")
        now = perf_counter()
        outlook = self.forecaster.outlook(now)
        error.retry_after = _jittered(outlook.start(job, now).median if job in outlook else self.queue_timeout)
        return error


def _jittered(seconds: float) -> int:
    """Upward, so that those who were refused together do not come back together; SDKs give up above 60."""
    return ceil(max(1.0, min(seconds * uniform(1.0, 1.25), 60.0)))


_DRAINING = "The gateway is shutting down. Try again in a moment."

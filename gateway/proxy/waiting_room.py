"""The waiting room: where requests are until admission lets them go.

All state changes happen between awaits, on one event loop: there are no locks, and a permit can neither leak nor
come back twice, wherever a request is cancelled.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from math import ceil
from random import uniform
from time import perf_counter

import anyio

from gateway.errors import Draining, GatewayError, QueueTimeout, Rejected
from gateway.forecasting.forecaster import Forecaster
from gateway.forecasting.speed import EngineSpeed, JobProgress
from gateway.outcome import Outcome
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Event, tell
from gateway.scheduling.ledger import Slice
from policies.base import Job

logger = logging.getLogger("fairlane")

# Told of each event when it has happened, and who was let go by it.
Observer = Callable[[Event, list[Job]], None]


class Permit:
    """The right to be in the engine. Its prefill part goes back at the first token, its seats at the end.

    `cost` is what the job is charged in the end, in engine seconds: the prediction, until somebody knows better.
    `number` counts the dispatches, in the order in which admission let them go.
    `track.tokens` is how many of its answer came, kept up to date by whoever relays them.
    """

    def __init__(self, room: "WaitingRoom", job: Job, number: int) -> None:
        self.job = job
        self.number = number
        self.cost = job.cost
        self.output_tokens: int | None = None  # of a whole answer
        self.track = room.forecaster.pace.tracks.get(job) or JobProgress()
        self.predicted_prefill_s = room.admission.predicted_prefill(job)
        self._room: WaitingRoom | None = room

    async def go_on(self, part: Slice, *, done: bool = True) -> None:
        """A slice is done, or will not be: let others go, and wait for the turn of the next one."""
        assert self._room
        self.number = await self._room.go_on(self.job, part, done=done)
        self.predicted_prefill_s = self._room.admission.predicted_prefill(self.job)

    def first_token(self, *, guessed: bool = False) -> None:
        """Give the prefill part back. Again, or after the end, it is harmless. Nothing is learned from a guess."""
        if self._room:
            self._room.tell(Event("first_token", self.job, guessed=guessed or None))

    def progress(self, cost: float, kv_tokens: int) -> None:
        """So much has it come to by now, and so much cache will it fill."""
        self.cost = cost
        if self._room:
            self._room.tell(Event("progress", self.job, cost, kv_tokens))

    def end(self) -> None:
        self._room = None


class _Waiter:
    def __init__(self) -> None:
        self.wake = anyio.Event()
        self.granted = False
        self.number = 0
        self.evicted: GatewayError | None = None
        self.scope = anyio.CancelScope()


class WaitingRoom:
    def __init__(
        self,
        admission: Admission,
        queue_timeout: float,
        observe: Observer | None = None,
        forecaster: Forecaster | None = None,
    ) -> None:
        self.admission = admission
        self.queue_timeout = queue_timeout
        self.forecaster = forecaster or Forecaster(admission, EngineSpeed())
        self.draining = False
        self._observe = observe
        self._waiters: dict[Job, _Waiter] = {}
        self._nobody_decodes = anyio.Event()
        self._dispatched = count(1)

    @asynccontextmanager
    async def admitted(
        self, job: Job, max_tokens: int | None = None, part: Slice | None = None
    ) -> AsyncIterator[Permit]:
        """Wait for the job's turn, hold its permit, give it back. Raises Rejected, QueueTimeout or Draining.

        max_tokens  how long its answer may become
        part        the first slice of its prefill, if that comes in slices; see `Permit.go_on`
        """
        self._check(job)
        waiter = self._waiters[job] = _Waiter()
        cost, output_tokens = 0.0, None
        self.tell(Event("arrive", job, max_tokens=max_tokens, part=part))
        try:
            if not waiter.granted:
                with anyio.move_on_after(self.queue_timeout):
                    await waiter.wake.wait()
            if waiter.evicted:
                raise waiter.evicted
            # A grant may have come in the very moment of the timeout: then it holds.
            if not waiter.granted:
                raise self._timeout(job)
            permit = Permit(self, job, waiter.number)
            cost = job.cost
            try:
                with waiter.scope:
                    yield permit
            finally:
                permit.end()
                cost, output_tokens = permit.cost, permit.output_tokens
            if waiter.evicted and waiter.scope.cancelled_caught:
                raise waiter.evicted
        finally:
            # No await in here: nothing can come between a request's end and its permit's return.
            del self._waiters[job]
            if waiter.granted:
                self.tell(Event("finish", job, cost, output_tokens=output_tokens))
            else:
                self.tell(Event("leave", job))

    async def go_on(self, job: Job, part: Slice, *, done: bool = True) -> int:
        """Let the job's next slice wait for its turn, however long; the number of its dispatch. Until then it holds no
        seat. Whoever has begun is not sent away: not by `queue_timeout`, nor while the gateway drains."""
        waiter = self._waiters[job]
        waiter.wake = anyio.Event()
        self.tell(Event("slice_done", job, part=part, guessed=None if done else True))
        await waiter.wake.wait()
        return waiter.number

    async def pause(self, seconds: float) -> None:
        """Leave the engine to those who decode, as long as there are any."""
        with anyio.move_on_after(seconds):
            while self.forecaster.pace.sequences:
                await self._nobody_decodes.wait()

    def drain(self) -> None:
        """Let nobody else in, and send away whoever waits. What runs goes on."""
        self.draining = True
        for waiter in self._waiters.values():
            if not waiter.granted:
                waiter.evicted = Draining(_DRAINING)
                waiter.wake.set()

    def cut_off(self) -> None:
        """End what is in the engine, too."""
        for waiter in self._waiters.values():
            waiter.evicted = Draining(_DRAINING)
            waiter.scope.cancel()

    def tell(self, event: Event) -> None:
        """Let it happen, and wake whoever is let go by it."""
        dispatched = tell(self.admission, event)
        for granted in dispatched:
            waiter = self._waiters[granted]
            waiter.granted, waiter.number = True, next(self._dispatched)
            waiter.wake.set()
        # From here on nothing may fail: what has happened has happened, whoever else would like to know of it.
        try:
            self.forecaster.happened(event, dispatched, perf_counter())
        except Exception:
            logger.exception("the forecast failed at %s", event.kind)
        if not self.forecaster.pace.sequences and self._nobody_decodes.statistics().tasks_waiting:
            self._nobody_decodes.set()
            self._nobody_decodes = anyio.Event()
        if self._observe:
            try:
                self._observe(event, dispatched)
            except Exception:
                logger.exception("the decision log cannot be written; it ends here")
                self._observe = None

    def _check(self, job: Job) -> None:
        if self.draining:
            raise Draining(_DRAINING)
        now, limits = perf_counter(), self.admission.limits
        match self.admission.refuses(job):
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

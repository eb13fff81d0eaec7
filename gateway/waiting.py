"""The waiting room: where requests are until admission lets them go.

All state changes happen between awaits, on one event loop: there are no locks, and a permit can neither leak nor
come back twice, wherever a request is cancelled.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from gateway.admission import Admission
from gateway.errors import Draining, GatewayError, QueueTimeout
from policies.base import Job

logger = logging.getLogger("fairlane")

# Told of each event as it happens: its name, its job, what the job came to if it finished, who was let go.
Observer = Callable[[str, Job, float | None, list[Job]], None]


class Permit:
    """The right to be in the engine. Its prefill part goes back at the first token, its seats at the end.

    `cost` is what the job is charged in the end, in engine seconds: the prediction, until somebody knows better.
    """

    def __init__(self, room: "WaitingRoom", job: Job) -> None:
        self.job = job
        self.cost = job.cost
        self.predicted_prefill_s = room.admission.predicted_prefill(job)
        self._room: WaitingRoom | None = room

    def first_token(self) -> None:
        """Give the prefill part back. Again, or after the end, it is harmless."""
        if self._room:
            self._room.first_token(self.job)

    def end(self) -> None:
        self._room = None


class _Waiter:
    def __init__(self) -> None:
        self.wake = anyio.Event()
        self.granted = False
        self.evicted: GatewayError | None = None
        self.scope = anyio.CancelScope()


class WaitingRoom:
    def __init__(self, admission: Admission, queue_timeout: float, observe: Observer | None = None) -> None:
        self.admission = admission
        self.queue_timeout = queue_timeout
        self.draining = False
        self._observe = observe
        self._waiters: dict[Job, _Waiter] = {}

    @asynccontextmanager
    async def admitted(self, job: Job) -> AsyncIterator[Permit]:
        """Wait for the job's turn, hold its permit, give it back. Raises QueueTimeout or Draining."""
        if self.draining:
            raise Draining(_DRAINING)
        waiter = self._waiters[job] = _Waiter()
        cost = 0.0
        self._carry_out("arrive", job, None, self.admission.arrive(job))
        try:
            if not waiter.granted:
                with anyio.move_on_after(self.queue_timeout):
                    await waiter.wake.wait()
            if waiter.evicted:
                raise waiter.evicted
            # A grant may have come in the very moment of the timeout: then it holds.
            if not waiter.granted:
                raise QueueTimeout(f"Waited for {self.queue_timeout:g} s (queue_timeout) and it is not your turn yet.")
            permit = Permit(self, job)
            cost = job.cost
            try:
                with waiter.scope:
                    yield permit
            finally:
                permit.end()
                cost = permit.cost
            if waiter.evicted and waiter.scope.cancelled_caught:
                raise waiter.evicted
        finally:
            # No await in here: nothing can come between a request's end and its permit's return.
            del self._waiters[job]
            if waiter.granted:
                self._carry_out("finish", job, cost, self.admission.finish(job, cost))
            else:
                self._carry_out("leave", job, None, self.admission.leave(job))

    def first_token(self, job: Job) -> None:
        self._carry_out("first_token", job, None, self.admission.first_token(job))

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

    def _carry_out(self, event: str, job: Job, cost: float | None, dispatched: list[Job]) -> None:
        for granted in dispatched:
            waiter = self._waiters[granted]
            waiter.granted = True
            waiter.wake.set()
        if self._observe:
            try:
                self._observe(event, job, cost, dispatched)
            except Exception:
                logger.exception("the decision log cannot be written; it ends here")
                self._observe = None


_DRAINING = "The gateway is shutting down. Try again in a moment."

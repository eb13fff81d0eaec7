"""Does it fit: the admission state machine.

It is told each event as it happens, and answers with the jobs to dispatch now, in order. There is no clock and no I/O
here: the driver may be an event loop or a heap of simulated events. `gateway.scheduling.transitions` has the phases of
a job, `gateway.scheduling.ledger` the budgets, `gateway.scheduling.queue` who waits. The rules:

1. A lane never idles while its head fits: a job that has begun, else the policy's choice among flows under their cap.
   Nobody passes the head of their own lane; but what has begun is passed by what is much shorter
   (`gateway.scheduling.queue`).
2. All budgets that a job needs are granted together or not at all.
3. Seats and cache are shared by the lanes. A head whose lane has room but which lacks these reserves all that comes
   free of them: nobody else goes, except that where cache alone is lacking those who have begun go on, for they hold
   the cache that is waited for. A head whose lane is full reserves nothing: it could not use it yet, and when its lane
   has room again it has the first claim.
4. The first claim is that of the lane which was served longest ago, so that where seats or cache are scarce the lanes
   take turns, and a flood in one never starves the other.
5. No dispatch takes a budget over its limit, except a job that is larger than the limit, alone. Lowered limits, growth
   and correction may leave a budget over for a while; then nothing is dispatched that needs of it.
6. A lane is held by what the engine has been sent and has not scheduled yet; the first token shows at the latest that
   it has.
"""

from typing import Self

from gateway.outcome import Outcome
from gateway.scheduling import events
from gateway.scheduling.events import Corrected, Event, JobEvent
from gateway.scheduling.ledger import Ledger
from gateway.scheduling.limits import Limits
from gateway.scheduling.queue import JobQueue
from gateway.scheduling.ticket import Phase, Slice, Ticket
from gateway.scheduling.transitions import after
from policies import find
from policies.base import LANES, Job, Lane, Policy


class Admission:
    """The state machine. Raises KeyError when told of a job in a phase in which that cannot happen."""

    def __init__(self, policy: Policy, limits: Limits | None = None) -> None:
        self.ledger = Ledger(limits or Limits())
        self.queue = JobQueue(policy, self.ledger.limits)
        self._tickets: dict[Job, Ticket] = {}
        self._dispatches = 0
        # Least recently served first.
        self._turns: list[Lane] = list(LANES)

    # What happened.

    def apply(self, event: Event) -> list[Job]:
        """Let it happen; the jobs to dispatch now, in order."""
        match event:
            case events.LimitsChanged(limits):
                return self.set_limits(limits)
            case events.PolicyChanged(policy):
                return self.set_policy(find(policy)())
            case events.Corrected():
                return self.correct(event)
            case _:
                return self._apply_to_job(event)

    def _apply_to_job(self, event: JobEvent) -> list[Job]:
        match event:
            case events.Arrived(job, first_slice):
                return self.arrive(job, first_slice)
            case events.Scheduled(job):
                return self.scheduled(job)
            case events.Requeued(job, following):
                return self.requeue(job, following)
            case events.SliceDone(job, following):
                return self.slice_done(job, following)
            case events.EarlierSliceDone(job):
                return self.earlier_slice_done(job)
            case events.FirstToken(job):
                return self.first_token(job)
            case events.Progressed(job, cost_s, kv_tokens):
                return self.progress(job, cost_s, kv_tokens)
            case events.Finished(job, cost_s):
                return self.finish(job, cost_s)
            case events.Left(job):
                return self.leave(job)

    def rejects(self, job: Job) -> Outcome | None:
        """Why this job may not wait, if it may not. Asked before `arrive`; changes nothing. Limits that are not set
        refuse nothing."""
        return self.queue.rejects(job)

    def arrive(self, job: Job, first_slice: Slice | None = None) -> list[Job]:
        if job in self._tickets:
            raise KeyError(job)
        ticket = self._tickets[job] = Ticket.of(job, first_slice)
        self.queue.enqueue(ticket)
        return self._dispatch()

    def scheduled(self, job: Job) -> list[Job]:
        """The engine has scheduled all that it was sent of the job: its lane is free."""
        ticket = self._move(job, events.Scheduled)
        self.ledger.release_lane(ticket)
        return self._dispatch()

    def requeue(self, job: Job, following: Slice) -> list[Job]:
        """Its next slice waits while the engine computes the one before it, which keeps its seats."""
        ticket = self._move(job, events.Requeued)
        ticket.earlier += 1
        return self._wait_for(ticket, following)

    def slice_done(self, job: Job, following: Slice) -> list[Job]:
        """A slice is prefilled, and the next one waits. The job's seats come back in between, its cache stays."""
        holds_lane = self._tickets[job].phase is Phase.PREFILL
        ticket = self._move(job, events.SliceDone)
        if holds_lane:
            self.ledger.release_lane(ticket)
        self.ledger.release_seats(ticket)
        return self._wait_for(ticket, following)

    def earlier_slice_done(self, job: Job) -> list[Job]:
        """A slice is prefilled whose successor waits, or was sent, already. Raises KeyError if there is none."""
        ticket = self._move(job, events.EarlierSliceDone)
        if not ticket.earlier:
            raise KeyError(job)
        ticket.earlier -= 1
        self.ledger.release_seats(ticket)
        return self._dispatch()

    def first_token(self, job: Job) -> list[Job]:
        """The engine has prefilled this job, or is taken to have. Told again, it changes nothing."""
        before = self._tickets[job].phase
        ticket = self._move(job, events.FirstToken)
        if before is Phase.DECODE:
            return []
        if before is Phase.PREFILL:
            self.ledger.release_lane(ticket)
        return self._dispatch()

    def progress(self, job: Job, cost_s: float, kv_tokens: int) -> list[Job]:
        """A running job has come to `cost_s` engine seconds, and fills or will fill `kv_tokens` of cache."""
        ticket = self._move(job, events.Progressed)
        self.ledger.reserve(ticket, kv_tokens)
        self.queue.charge(ticket, cost_s)
        return self._dispatch()

    def finish(self, job: Job, cost_s: float) -> list[Job]:
        """The job is out of the engine, however it ended; `cost_s` is what it came to, in engine seconds."""
        before = self._tickets[job].phase
        ticket = self._move(job, events.Finished)
        del self._tickets[job]
        if before is Phase.PREFILL:
            self.ledger.release_lane(ticket)
        for _ in range(ticket.earlier + (before is not Phase.REQUEUED)):
            self.ledger.release_seats(ticket)
        self.queue.complete(ticket, cost_s)
        self.ledger.release_kv(ticket)
        return self._dispatch()

    def leave(self, job: Job) -> list[Job]:
        """Out of the queue without having been served. What it had reserved is free for others."""
        ticket = self._move(job, events.Left)
        del self._tickets[job]
        self.queue.leave(ticket)
        return self._dispatch()

    def set_limits(self, limits: Limits) -> list[Job]:
        """Other limits from now on. What is over them stays, and nothing is dispatched until it has room."""
        self.ledger.limits = limits
        self.queue.set_limits(limits)
        return self._dispatch()

    def set_policy(self, policy: Policy) -> list[Job]:
        """Another policy from now on; nobody loses their place or their permit."""
        self.queue.set_policy(policy)
        return self._dispatch()

    def correct(self, correction: Corrected) -> list[Job]:
        """What the engine's own metrics say: how much of our reservations is in use, and what others use."""
        self.ledger.correction = correction
        return self._dispatch()

    # What is the case.

    @property
    def limits(self) -> Limits:
        return self.ledger.limits

    @property
    def seats(self) -> int:
        return self.ledger.seats

    @property
    def running(self) -> int:
        """Jobs that are in the engine."""
        waiting = sum(map(self.waiting, LANES))
        return len(self._tickets) - waiting

    def waiting(self, lane: Lane) -> int:
        return self.queue.waiting(lane)

    def prefill_jobs(self, lane: Lane) -> int:
        return self.ledger.lanes[lane].jobs

    def prefill_tokens(self, lane: Lane) -> int:
        return self.ledger.lanes[lane].tokens

    def held(self) -> dict[str, int]:
        """What the budgets have given out."""
        return {"seats": self.seats, "kv": self.ledger.kv_tokens} | {lane: self.prefill_tokens(lane) for lane in LANES}

    def ticket(self, job: Job) -> Ticket:
        """To read, not to change. Raises KeyError for a job that is not here."""
        return self._tickets[job]

    def copy(self) -> Self:
        """The same state, and a policy of its own: what happens to it happens to nobody else."""
        clone = type(self)(self.queue.policy, self.limits)
        clone._tickets = {job: ticket.copy() for job, ticket in self._tickets.items()}
        clone.ledger = self.ledger.copy()
        clone.queue = self.queue.copy(clone._tickets)
        clone._dispatches = self._dispatches
        clone._turns = self._turns.copy()
        return clone

    # What to do.

    def grant(self, ticket: Ticket) -> None:
        """Give it all that it needs, at once. Called by nobody but `_dispatch`."""
        self.queue.dispatch(ticket)
        self._move(ticket.job, events.Dispatched)
        self.ledger.acquire(ticket)
        self._dispatches += 1
        ticket.number, ticket.predicted_prefill_s = self._dispatches, self.ledger.prefill_s
        self._turns.remove(ticket.job.lane)
        self._turns.append(ticket.job.lane)

    def _dispatch(self) -> list[Job]:
        dispatched: list[Job] = []
        while ticket := self._next():
            self.grant(ticket)
            dispatched.append(ticket.job)
        return dispatched

    def _next(self) -> Ticket | None:
        reserved = False
        for lane in self._turns:
            ticket = self.queue.head(lane, _nobody if reserved else self._fits)
            if ticket is None or not self.ledger.lane_fits(ticket):
                continue
            if reserved and not ticket.begun:
                continue
            if self.ledger.engine_fits(ticket):
                return ticket
            # Cache may be held by those between slices: they take none, and go on, or it would never come back.
            if not self.ledger.lacks_cache_alone(ticket):
                return None
            reserved = True
        return None

    def _fits(self, ticket: Ticket) -> bool:
        return self.ledger.lane_fits(ticket) and self.ledger.engine_fits(ticket)

    def _wait_for(self, ticket: Ticket, following: Slice) -> list[Job]:
        ticket.slice = following
        self.queue.requeue(ticket)
        return self._dispatch()

    def _move(self, job: Job, event: type) -> Ticket:
        """Into the phase that follows. Raises KeyError, and then nothing has changed."""
        ticket = self._tickets[job]
        ticket.phase = after(ticket.phase, event)
        return ticket


def _nobody(ticket: Ticket) -> bool:
    return False

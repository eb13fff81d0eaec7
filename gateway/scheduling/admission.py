"""Does it fit: the admission state machine.

A job is told of as it happens, by the methods below, and every method answers with the jobs to let go now, in order.
There is no clock and no I/O here: the driver may be an event loop or a heap of simulated events.

    refuses      may this job wait at all? asked before `arrive`; changes nothing
    arrive       -> waiting
    (dispatch)      waiting -> prefill     this is the answer, never a call
    slice_done      prefill -> waiting     a part of its prefill is done; it goes on before others start in its lane
    first_token     prefill -> decode      its prefill permit comes back
    progress     it has come to so much by now, and will fill so much cache
    finish          prefill | decode | waiting between slices -> gone; what it held comes back, its charge is settled
    leave           waiting, never let go -> gone: the client left, it waited too long, the gateway drains

`gateway.scheduling.ledger` has the budgets, `gateway.scheduling.queue` who waits. The rules:

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
   and correction may leave a budget over for a while; then nothing is let go that needs of it.
"""

from typing import Self

from gateway.outcome import Outcome
from gateway.scheduling.ledger import Ledger, Slice
from gateway.scheduling.limits import Limits
from gateway.scheduling.queue import JobQueue
from policies.base import LANES, Job, Lane, Policy


class Admission:
    """The state machine. Raises KeyError when told of a job in a phase that it is not in."""

    def __init__(self, policy: Policy, limits: Limits | None = None) -> None:
        self.ledger = Ledger(limits or Limits())
        self.line = JobQueue(policy, self.ledger.limits)
        # In prefill, with the prefill seconds in the engine when it was let go, its own included.
        self._prefill: dict[Job, float] = {}
        self._decode: dict[Job, None] = {}
        # What is prefilled next, or now, of jobs that come in slices.
        self._parts: dict[Job, Slice] = {}
        # Least recently served first.
        self._turns: list[Lane] = list(LANES)

    # What happened.

    def refuses(self, job: Job) -> Outcome | None:
        """Why this job may not wait, if it may not. Limits that are not set refuse nothing."""
        return self.line.refuses(job)

    def arrive(self, job: Job, part: Slice | None = None) -> list[Job]:
        """The job waits. `part` is the first slice of its prefill, if it comes in slices."""
        self.line.join(job)
        if part is not None:
            self._parts[job] = part
        return self._dispatch()

    def slice_done(self, job: Job, part: Slice) -> list[Job]:
        """A slice is prefilled; `part` is the next one. The job's seats come back in between, its cache stays."""
        self._end_prefill(job)
        self._parts[job] = part
        self.ledger.release_seats(job)
        self.line.go_on(job, part.cost + part.rest)
        return self._dispatch()

    def first_token(self, job: Job) -> list[Job]:
        """The engine has prefilled this job, or may be taken to have. Told again, it changes nothing."""
        if job in self._decode:
            return []
        self._end_prefill(job)
        self._decode[job] = None
        return self._dispatch()

    def progress(self, job: Job, cost: float, kv_tokens: int) -> list[Job]:
        """A running job has come to `cost` engine seconds, and fills or will fill `kv_tokens` of cache."""
        self.ledger.reserve(job, kv_tokens)
        self.line.charge(job, cost)
        return self._dispatch()

    def finish(self, job: Job, cost: float) -> list[Job]:
        """The job is out of the engine, however it ended; `cost` is what it came to, in engine seconds."""
        if job in self._prefill:
            self._end_prefill(job)
            self.ledger.release_seats(job)
        elif job in self._decode:
            del self._decode[job]
            self.ledger.release_seats(job)
        self.line.end(job, cost)
        self.ledger.release_kv(job)
        self._parts.pop(job, None)
        return self._dispatch()

    def leave(self, job: Job) -> list[Job]:
        """Out of the queue without having been served. What it had reserved is free for others."""
        self.line.leave(job)
        self._parts.pop(job, None)
        return self._dispatch()

    def relimit(self, limits: Limits) -> list[Job]:
        """Other limits from now on. What is over them stays, and nothing is let go until it has room."""
        self.ledger.limits = limits
        self.line.relimit(limits)
        return self._dispatch()

    def use(self, policy: Policy) -> list[Job]:
        """Another policy from now on; nobody loses their place or their permit."""
        self.line.use(policy)
        return self._dispatch()

    def correct(self, *, kv_scale: float = 1.0, external_seats: int = 0, external_kv_tokens: int = 0) -> list[Job]:
        """What the engine's own metrics say: how much of our reservations is in use, and what others use."""
        self.ledger.kv_scale = kv_scale
        self.ledger.external_seats = external_seats
        self.ledger.external_kv_tokens = external_kv_tokens
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
        return len(self._prefill) + len(self._decode)

    def waiting(self, lane: Lane) -> int:
        return self.line.waiting(lane)

    def prefill_jobs(self, lane: Lane) -> int:
        return self.ledger.prefill[lane].jobs

    def prefill_tokens(self, lane: Lane) -> int:
        return self.ledger.prefill[lane].tokens

    def held(self) -> dict[str, int]:
        """What the budgets have given out."""
        return {"seats": self.seats, "kv": self.ledger.kv_tokens} | {lane: self.prefill_tokens(lane) for lane in LANES}

    def predicted_prefill(self, job: Job) -> float:
        """Seconds from dispatch to first token of a job in prefill, the work ahead of it in the engine counted.

        Whoever gets no sign of the first token, as with an answer that is not streamed, calls `first_token` when they
        have passed.
        """
        return self._prefill[job]

    def copy(self) -> Self:
        """The same state, and a policy of its own: what happens to it happens to nobody else."""
        clone = type(self)(self.line.policy, self.limits)
        clone.ledger = self.ledger.copy()
        clone.line = self.line.copy()
        clone._prefill = self._prefill.copy()
        clone._decode = self._decode.copy()
        clone._parts = self._parts.copy()
        clone._turns = self._turns.copy()
        return clone

    # What to do.

    def _dispatch(self) -> list[Job]:
        dispatched: list[Job] = []
        while job := self._next():
            self._start(job)
            dispatched.append(job)
        return dispatched

    def _next(self) -> Job | None:
        reserved = False
        for lane in self._turns:
            job = self.line.head(lane, _nobody if reserved else self._fits)
            if job is None or not self.ledger.lane_fits(job, self._part(job)):
                continue
            if reserved and not self.line.has_begun(job):
                continue
            if self.ledger.engine_fits(job):
                return job
            # Cache may be held by those between slices: they take none, and go on, or it would never come back.
            if not self.ledger.lacks_cache_alone(job):
                return None
            reserved = True
        return None

    def _start(self, job: Job) -> None:
        self.line.take(job)
        self.ledger.take(job, self._part(job))
        self._prefill[job] = self.ledger.prefill_cost
        self._turns.remove(job.lane)
        self._turns.append(job.lane)

    def _fits(self, job: Job) -> bool:
        return self.ledger.lane_fits(job, self._part(job)) and self.ledger.engine_fits(job)

    def _end_prefill(self, job: Job) -> None:
        del self._prefill[job]
        self.ledger.end_prefill(job, self._part(job))

    def _part(self, job: Job) -> Slice:
        return self._parts.get(job) or Slice(job.tokens, job.cost)


def _nobody(job: Job) -> bool:
    return False

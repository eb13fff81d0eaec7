"""Does it fit: the admission state machine.

A job is told of as it happens, by the methods below, and every method answers with the jobs to let go now, in
order. There is no clock and no I/O here: the driver may be an event loop or a heap of simulated events.

    arrive       -> waiting
    (dispatch)      waiting -> prefill     this is the answer, never a call
    first_token     prefill -> decode      its prefill permit comes back
    finish          prefill | decode -> gone, its seats come back, its charge is settled
    leave           waiting -> gone        evicted: the client left, it waited too long, the gateway drains

Budgets, each a counter with this one owner, granted together or not at all:

    short lane   uncached tokens in prefill at most `short_lane_tokens`
    long lane    jobs in prefill at most `long_lane_jobs`
    seats        sequences in the engine at most `max_num_seqs`

Rules:

1. A lane never idles while its head, the policy's choice, fits. Nobody passes the head of their own lane.
2. A head that lacks seats alone reserves those that are free and those that come free; the other lane goes
   on only with what is left. A head whose lane is full reserves no seats: it could not use them yet, and when
   its lane has room again it has the first claim.
3. The first claim is that of the lane which was served longest ago, so that where seats are scarce the lanes
   take turns, and a flood in one never starves the other.
4. No dispatch takes a budget over its limit, except a job that is larger than the limit: it goes alone, when
   nothing else holds that budget. Lowered limits may leave a budget over for a while; then nothing is let go.
"""

from dataclasses import dataclass

from policies.base import LANES, Job, Lane, Policy


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine is given at once. Tokens are uncached prompt tokens, seats are sequences.

    vLLM tells neither its step budget nor its thresholds over its API, so these are configured.
    """

    long_prompt_tokens: int = 2048
    short_lane_tokens: int = 8192
    long_lane_jobs: int = 1
    max_num_seqs: int = 256

    def lane(self, tokens: int) -> Lane:
        return "short" if tokens <= self.long_prompt_tokens else "long"


@dataclass(slots=True)
class _Prefilling:
    """What a lane has in prefill: its own budget's counters."""

    jobs: int = 0
    tokens: int = 0


class Admission:
    """The state machine. Raises KeyError when told of a job in a phase that it is not in."""

    def __init__(self, policy: Policy, limits: Limits | None = None) -> None:
        self.policy = policy
        self.limits = limits or Limits()
        self.seats = 0
        self.prefill_cost = 0.0
        self._waiting: set[Job] = set()
        # In prefill, with the prefill seconds in the engine when it was let go, its own included.
        self._prefill: dict[Job, float] = {}
        self._decode: set[Job] = set()
        self._lanes: dict[Lane, _Prefilling] = {lane: _Prefilling() for lane in LANES}
        # Least recently served first.
        self._turns: list[Lane] = list(LANES)

    # What happened.

    def arrive(self, job: Job) -> list[Job]:
        self._waiting.add(job)
        self.policy.push(job)
        return self._dispatch()

    def first_token(self, job: Job) -> list[Job]:
        """The engine has prefilled this job, or may be taken to have. Told again, it changes nothing."""
        if job in self._decode:
            return []
        self._end_prefill(job)
        self._decode.add(job)
        return self._dispatch()

    def finish(self, job: Job, cost: float) -> list[Job]:
        """The job is out of the engine, however it ended; `cost` is what it came to, in engine seconds."""
        if job in self._prefill:
            self._end_prefill(job)
        else:
            self._decode.remove(job)
        self.seats -= job.seats
        self.policy.settle(job, cost)
        return self._dispatch()

    def leave(self, job: Job) -> list[Job]:
        """Out of the queue without having been served. What it had reserved is free for others."""
        self._waiting.remove(job)
        self.policy.remove(job)
        return self._dispatch()

    # What is the case.

    def waiting(self, lane: Lane) -> int:
        return self.policy.waiting(lane)

    def prefill_jobs(self, lane: Lane) -> int:
        return self._lanes[lane].jobs

    def prefill_tokens(self, lane: Lane) -> int:
        return self._lanes[lane].tokens

    @property
    def running(self) -> int:
        return len(self._prefill) + len(self._decode)

    def held(self) -> dict[str, int]:
        """What the budgets have given out."""
        return {"seats": self.seats} | {lane: self._lanes[lane].tokens for lane in LANES}

    def predicted_prefill(self, job: Job) -> float:
        """Seconds from dispatch to first token of a job in prefill, the work ahead of it in the engine counted.

        Whoever gets no sign of the first token, as with an answer that is not streamed, calls `first_token`
        when they have passed.
        """
        return self._prefill[job]

    # What to do.

    def _dispatch(self) -> list[Job]:
        dispatched: list[Job] = []
        while job := self._next():
            self._start(job)
            dispatched.append(job)
        return dispatched

    def _next(self) -> Job | None:
        reserved = 0
        for lane in self._turns:
            job = self.policy.peek(lane)
            if job is None or not self._lane_fits(job):
                continue
            if self._seats_fit(job, reserved):
                return job
            reserved += job.seats
        return None

    def _lane_fits(self, job: Job) -> bool:
        prefilling = self._lanes[job.lane]
        if prefilling.jobs == 0:
            return True
        if job.lane == "long":
            return prefilling.jobs < self.limits.long_lane_jobs
        return prefilling.tokens + job.tokens <= self.limits.short_lane_tokens

    def _seats_fit(self, job: Job, reserved: int) -> bool:
        if reserved == 0 and self.seats == 0:
            return True
        return self.seats + reserved + job.seats <= self.limits.max_num_seqs

    def _start(self, job: Job) -> None:
        self.policy.pop(job.lane)
        self._waiting.remove(job)
        self.prefill_cost += job.cost
        self._prefill[job] = self.prefill_cost
        self._lanes[job.lane].jobs += 1
        self._lanes[job.lane].tokens += job.tokens
        self.seats += job.seats
        self._turns.remove(job.lane)
        self._turns.append(job.lane)

    def _end_prefill(self, job: Job) -> None:
        del self._prefill[job]
        self._lanes[job.lane].jobs -= 1
        self._lanes[job.lane].tokens -= job.tokens
        # A running sum of floats drifts; an empty engine is the moment to be exact again.
        self.prefill_cost = self.prefill_cost - job.cost if self._prefill else 0.0

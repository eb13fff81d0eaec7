"""What the engine has been given: each budget a counter, and this its one owner.

    short lane   uncached tokens in prefill at most `short_lane_tokens`
    long lane    jobs in prefill at most `long_lane_jobs`
    seats        sequences in the engine at most `max_num_seqs`
    cache        reserved tokens, scaled to what the engine says is in use, at most `kv_tokens`

A job that is larger than a budget fits when nothing else of ours holds that budget: it goes alone. What others do with
the engine counts as used, but never keeps the last job out: this ledger is the gate, and an engine that looks busy for
ever must not freeze it.
"""

from dataclasses import dataclass, replace
from typing import Self

from gateway.scheduling.limits import Limits
from policies.base import LANES, Job, Lane


@dataclass(frozen=True, slots=True)
class Slice:
    """What of a job's prefill is done at once: a slice, or all of it. Tokens, the engine seconds they cost, and those
    that the slices after it will."""

    tokens: int
    cost: float
    rest: float = 0.0


@dataclass(slots=True)
class _Prefilling:
    jobs: int = 0
    tokens: int = 0


class Ledger:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.seats = 0
        self.kv_tokens = 0
        # What the engine's own metrics say of our reservations, and of others.
        self.kv_scale = 1.0
        self.external_seats = 0
        self.external_kv_tokens = 0
        # Of what is in prefill, engine seconds.
        self.prefill_cost = 0.0
        self.prefill: dict[Lane, _Prefilling] = {lane: _Prefilling() for lane in LANES}
        self._reserved: dict[Job, int] = {}

    def lane_fits(self, job: Job, part: Slice) -> bool:
        prefilling = self.prefill[job.lane]
        if prefilling.jobs == 0:
            return True
        if job.lane == "long":
            return prefilling.jobs < self.limits.long_lane_jobs
        return prefilling.tokens + part.tokens <= self.limits.short_lane_tokens

    def engine_fits(self, job: Job) -> bool:
        """Seats and cache, which both lanes share."""
        return self._seats_fit(job) and self._kv_fits(job)

    def lacks_cache_alone(self, job: Job) -> bool:
        return self._seats_fit(job) and not self._kv_fits(job)

    def take(self, job: Job, part: Slice) -> None:
        """All that the job needs for this part, at once. Cache is reserved once, for the whole job."""
        self.seats += job.seats
        self.prefill_cost += part.cost
        self.prefill[job.lane].jobs += 1
        self.prefill[job.lane].tokens += part.tokens
        if job not in self._reserved:
            self._reserved[job] = 0
            self.reserve(job, job.kv_tokens)

    def end_prefill(self, job: Job, part: Slice) -> None:
        prefilling = self.prefill[job.lane]
        prefilling.jobs -= 1
        prefilling.tokens -= part.tokens
        self.prefill_cost -= part.cost
        if not any(lane.jobs for lane in self.prefill.values()):
            self.prefill_cost = 0.0  # a running sum of floats drifts; here it can be exact again

    def release_seats(self, job: Job) -> None:
        self.seats -= job.seats

    def reserve(self, job: Job, kv_tokens: int) -> None:
        """So much cache and no more, nor less. Raises KeyError for a job that holds none."""
        self.kv_tokens += kv_tokens - self._reserved[job]
        self._reserved[job] = kv_tokens

    def release_kv(self, job: Job) -> None:
        self.kv_tokens -= self._reserved.pop(job)

    def copy(self) -> Self:
        clone = type(self)(self.limits)
        clone.__dict__.update(self.__dict__)
        clone.prefill = {lane: replace(prefilling) for lane, prefilling in self.prefill.items()}
        clone._reserved = self._reserved.copy()
        return clone

    def _seats_fit(self, job: Job) -> bool:
        return self.seats == 0 or self.seats + self.external_seats + job.seats <= self.limits.max_num_seqs

    def _kv_fits(self, job: Job) -> bool:
        limit = self.limits.kv_tokens
        # What a job that has begun holds, it holds already.
        if limit is None or self.kv_tokens == 0 or job.kv_tokens == 0 or job in self._reserved:
            return True
        return (self.kv_tokens + job.kv_tokens) * self.kv_scale + self.external_kv_tokens <= limit

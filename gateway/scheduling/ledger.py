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

from gateway.scheduling.events import Corrected
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Ticket
from policies.base import LANES, Lane


@dataclass(slots=True)
class _LaneLoad:
    jobs: int = 0
    tokens: int = 0


class Ledger:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.seats = 0
        self.kv_tokens = 0
        # What the engine's own metrics say of our reservations, and of others.
        self.correction = Corrected()
        # Of what is in prefill, engine seconds.
        self.prefill_s = 0.0
        self.lanes: dict[Lane, _LaneLoad] = {lane: _LaneLoad() for lane in LANES}

    def lane_fits(self, ticket: Ticket) -> bool:
        load = self.lanes[ticket.job.lane]
        if load.jobs == 0:
            return True
        if ticket.job.lane == "long":
            return load.jobs < self.limits.long_lane_jobs
        return load.tokens + ticket.slice.tokens <= self.limits.short_lane_tokens

    def engine_fits(self, ticket: Ticket) -> bool:
        """Seats and cache, which both lanes share."""
        return self._seats_fit(ticket) and self._kv_fits(ticket)

    def lacks_cache_alone(self, ticket: Ticket) -> bool:
        return self._seats_fit(ticket) and not self._kv_fits(ticket)

    def acquire(self, ticket: Ticket) -> None:
        """All that the job needs for its slice, at once. Cache is reserved once, for the whole job."""
        job, load = ticket.job, self.lanes[ticket.job.lane]
        self.seats += job.seats
        self.prefill_s += ticket.slice.cost_s
        load.jobs += 1
        load.tokens += ticket.slice.tokens
        if ticket.kv_tokens is None:
            self.reserve(ticket, job.kv_tokens)

    def release_lane(self, ticket: Ticket) -> None:
        load = self.lanes[ticket.job.lane]
        load.jobs -= 1
        load.tokens -= ticket.slice.tokens
        self.prefill_s -= ticket.slice.cost_s
        if not any(lane.jobs for lane in self.lanes.values()):
            self.prefill_s = 0.0  # a running sum of floats drifts; here it can be exact again

    def release_seats(self, ticket: Ticket) -> None:
        """Those of one slice."""
        self.seats -= ticket.job.seats

    def reserve(self, ticket: Ticket, kv_tokens: int) -> None:
        """So much cache and no more, nor less."""
        self.kv_tokens += kv_tokens - (ticket.kv_tokens or 0)
        ticket.kv_tokens = kv_tokens

    def release_kv(self, ticket: Ticket) -> None:
        self.kv_tokens -= ticket.kv_tokens or 0
        ticket.kv_tokens = None

    def kv_in_use(self) -> float:
        """Tokens of the engine's cache, ours and others', as far as is known."""
        return self.kv_tokens * self.correction.kv_scale + self.correction.external_kv_tokens

    def copy(self) -> Self:
        clone = type(self)(self.limits)
        clone.seats, clone.kv_tokens, clone.prefill_s = self.seats, self.kv_tokens, self.prefill_s
        clone.correction = self.correction
        clone.lanes = {lane: replace(load) for lane, load in self.lanes.items()}
        return clone

    def _seats_fit(self, ticket: Ticket) -> bool:
        wanted = self.seats + self.correction.external_seats + ticket.job.seats
        return self.seats == 0 or wanted <= self.limits.max_num_seqs

    def _kv_fits(self, ticket: Ticket) -> bool:
        limit, wanted = self.limits.kv_tokens, ticket.job.kv_tokens
        # What a job that has begun holds, it holds already.
        if limit is None or self.kv_tokens == 0 or wanted == 0 or ticket.kv_tokens is not None:
            return True
        correction = self.correction
        return (self.kv_tokens + wanted) * correction.kv_scale + correction.external_kv_tokens <= limit

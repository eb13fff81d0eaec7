"""The run forward: the real admission, copied, and told what is going to happen.

Between events the engine is a fluid. Prefill is served in the order of dispatch, or, where the engine shares its steps,
both lanes at once; each at its lane's learned slowdown. While prompts are prefilled those who decode get few tokens,
else what the learned power law says. So a job in prefill has its first token when its work is done, one that decodes
ends when it has had as many tokens as answers have, and each of these is told to the copy, which dispatches others by
its own rules and policy. No job is expected that has not come: that is what the 90th percentile learns.

Nobody knows how long an answer will be, and the order of flows depends on it. So a few futures are run where jobs are
few, and in each the answers are spread evenly over the lengths seen, which leaves both the first of many to end and
all of them together where they should be.
"""

from copy import copy
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple, Self

from gateway.forecasting.progress import Instant
from gateway.forecasting.speed import EngineSpeed
from gateway.scheduling.admission import Admission
from gateway.scheduling.ticket import Slice
from policies.base import LANES, Job, Lane

# The fractional parts of the golden and the silver ratio: their multiples spread evenly over 0 to 1 (Weyl sequences).
GOLDEN = 0.6180339887498949
SILVER = 0.4142135623730951
OVERDUE = 0.05  # of its work is left to one that takes longer than predicted


class Times:
    """Of one job. Instants on the driver's clock; infinite until it has come to that."""

    __slots__ = ("end", "first_token", "start")

    def __init__(self) -> None:
        self.start = self.first_token = self.end = inf

    def at(self, instant: Instant) -> float:
        moment: float = getattr(self, instant)
        return moment


class LaneMove(NamedTuple):
    """A lane moved on at `at`, because `flow` gave something back."""

    at: float
    flow: str


@dataclass(slots=True)
class _Prefilling:
    job: Job
    left: float  # wall seconds of work
    number: int  # of its dispatch


class Simulation:
    """`admission` is its own, and changes; `speed` is only read."""

    def __init__(self, admission: Admission, now: float, speed: EngineSpeed, future: int = 0) -> None:
        self.admission = admission
        self.now = now
        self.speed = speed
        self._future = future
        self.times: dict[Job, Times] = {}
        self.moves: dict[Lane, list[LaneMove]] = {lane: [] for lane in LANES}
        self._prefilling: dict[Lane, list[_Prefilling]] = {lane: [] for lane in LANES}
        self._decoding: list[tuple[float, int, Job, int]] = []  # at which count of tokens it ends, and with how many
        self._tokens = 0.0  # that each sequence has had since the run began
        self._sequences = 0
        self._answers = 0
        self._dispatches = speed.dispatches
        self._take_over(now)

    def arrive(self, job: Job) -> None:
        self.times[job] = Times()
        self._dispatched(self.admission.arrive(job), job)

    def copy(self) -> Self:
        """For another future: what happens there does not happen here."""
        clone = copy(self)
        clone.admission = self.admission.copy()
        clone.times = {job: copy(times) for job, times in self.times.items() if times.end == inf}
        clone.moves = {lane: moves.copy() for lane, moves in self.moves.items()}
        clone._prefilling = {lane: [replace(each) for each in jobs] for lane, jobs in self._prefilling.items()}
        clone._decoding = self._decoding.copy()
        return clone

    def until(self, when: float = inf, *, first_token_of: Job | None = None) -> Self:
        """Go on to an instant, or until that job has its first token, or to the end."""
        times = self.times[first_token_of] if first_token_of else None
        while (times is None or times.first_token == inf) and self._step(when):
            pass
        return self

    def _take_over(self, now: float) -> None:
        """What is the case when the run begins."""
        speed = self.speed
        served = speed.served_by(now)
        for lane, jobs in speed.prefilling.items():
            for job, number in jobs.items():
                work = self._work(job)
                left = work if self._prefilling[lane] else max(work - served[lane], work * OVERDUE)
                self._prefilling[lane].append(_Prefilling(job, left, number))
        for job, progress in speed.progress.items():
            times = self.times[job] = Times()
            if not progress.queued:
                times.start = now
            if progress.first_token_at is not None:
                times.first_token = now
                self._decode(job, progress.tokens, progress.max_tokens)

    def _step(self, when: float) -> bool:
        """Go on to the next event, if it comes by then, else to `when`."""
        firsts = {lane: jobs[0] for lane, jobs in self._prefilling.items() if jobs}
        mode, rates = self.speed.rates({lane: first.number for lane, first in firsts.items()})
        tokens_s = self.speed.token_rate(mode, self._sequences)
        wait, lane = when - self.now, None
        ends = False
        for each, rate in rates.items():
            if firsts[each].left <= wait * rate:
                wait, lane = firsts[each].left / rate, each
        if self._decoding and self._decoding[0][0] - self._tokens <= wait * tokens_s:
            wait, ends = max(0.0, (self._decoding[0][0] - self._tokens) / tokens_s), True
        if wait == inf:
            return False
        self.now += wait
        self._tokens += wait * tokens_s
        for each, rate in rates.items():
            firsts[each].left -= wait * rate
        if ends:
            self._end()
        elif lane:
            self._prefilled(self._prefilling[lane].pop(0).job)
        return ends or lane is not None

    def _prefilled(self, job: Job) -> None:
        piece = self.admission.ticket(job).slice
        if piece.rest_s > 0:
            self._dispatched(self.admission.slice_done(job, _following(piece)), job)
            return
        progress = self.speed.progress.get(job)
        self.times[job].first_token = self.now
        self._decode(job, 1, progress.max_tokens if progress else None)
        self._dispatched(self.admission.first_token(job), job)

    def _decode(self, job: Job, tokens: int, max_tokens: int | None) -> None:
        self._answers += 1
        quantile = (self._answers * GOLDEN + self._future * SILVER) % 1
        in_the_end = self.speed.answers.expect(tokens, max_tokens, quantile)
        heappush(self._decoding, (self._tokens + in_the_end - tokens, self._answers, job, in_the_end))
        self._sequences += job.seats

    def _end(self) -> None:
        _, _, job, tokens = heappop(self._decoding)
        self._sequences -= job.seats
        self.times[job].end = self.now
        self._dispatched(self.admission.finish(job, job.cost + self.speed.decode_cost(tokens)), job)

    def _dispatched(self, jobs: list[Job], because: Job) -> None:
        for job in jobs:
            times = self.times[job]
            if times.start == inf:
                times.start = self.now
                self.moves[job.lane].append(LaneMove(self.now, because.flow))
            self._prefilling[job.lane].append(_Prefilling(job, self._work(job), self._dispatches))
            self._dispatches += 1

    def _work(self, job: Job) -> float:
        return self.speed.work(job, self.admission.ticket(job).slice)


def _following(piece: Slice) -> Slice:
    """The slices after this one are taken to be as long as it is: deeper ones have fewer tokens, not more seconds."""
    seconds = piece.rest_s / max(1, round(piece.rest_s / piece.cost_s)) if piece.cost_s > 0 else piece.rest_s
    return Slice(piece.tokens, seconds, piece.rest_s - seconds)

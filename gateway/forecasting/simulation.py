"""What will happen: the real admission, copied, and told what is going to happen.

Between events the engine is a fluid. Prefill is served in the order of dispatch, or, where the engine shares its steps,
both lanes at once; each at its lane's learned slowdown. While prompts are prefilled those who decode get few tokens,
else what the learned power law says. So a job in prefill has its first token when its work is done, one that decodes
ends when it has had as many tokens as answers have, and each of these is told to the copy, which lets others go by
its own rules and policy. No job is expected that has not come: that is what the 90th percentile learns.

Nobody knows how long an answer will be, and the order of flows hangs on it. So a few futures are run where jobs are
few, and in each the answers are spread evenly over the lengths seen, which leaves both the first of many to end and
all of them together where they should be; the median future of each job is told.
"""

from copy import copy
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple, Self

from gateway.forecasting.speed import INSTANTS, EngineSpeed, Instant
from gateway.scheduling.admission import Admission
from gateway.scheduling.ledger import Slice
from policies.base import LANES, Job, Lane

MAX_RETRY_S = 60.0
MIN_RETRY_S = 1.0
GOLDEN = 0.6180339887498949
SILVER = 0.4142135623730951
OVERDUE = 0.05  # of its work is left to one that takes longer than predicted
FUTURES, FUTURE_JOBS = 5, 600  # so many futures at most, and of so many jobs in all


class Eta(NamedTuple):
    """Seconds from now."""

    median: float
    p90: float


class _Times:
    """Instants on the driver's clock."""

    __slots__ = ("end", "first_token", "start")

    def __init__(self) -> None:
        self.start = self.first_token = self.end = inf

    def at(self, instant: Instant) -> float:
        moment: float = getattr(self, instant)
        return moment


class _Step(NamedTuple):
    """A lane moved on at `at`, because `flow` gave something back."""

    at: float
    flow: str


@dataclass(slots=True)
class _Prefilling:
    job: Job
    left: float  # wall seconds of work
    number: int  # of its dispatch


class Outlook:
    """What is to be expected as of one instant; medians are over a few futures. It holds until admission is told of
    something that it did not expect; `now` may go on meanwhile, and what it tells is seconds from then."""

    def __init__(self, runs: "list[Run]", now: float, pace: EngineSpeed) -> None:
        self.now = now
        self._runs = runs
        self._pace = pace

    def __contains__(self, job: Job) -> bool:
        return job in self._runs[0].times

    def start(self, job: Job, now: float | None = None) -> Eta:
        return self._eta(job, "start", now)

    def first_token(self, job: Job, now: float | None = None) -> Eta:
        return self._eta(job, "first_token", now)

    def end(self, job: Job, now: float | None = None) -> Eta:
        return self._eta(job, "end", now)

    def medians(self, job: Job) -> dict[Instant, float]:
        """As `EngineSpeed.said` takes them."""
        return {instant: self._eta(job, instant, None).median for instant in INSTANTS}

    def wait_attribution(self, job: Job) -> dict[str, float]:
        """Seconds of the wait to start, by the flow that gave back what the lane waited for. They sum to that wait."""
        run = self._central(job, "start")
        start, cap = run.times[job].start, run.admission.limits.in_flight(job)
        own = [times for other, times in run.times.items() if cap and other.flow == job.flow]
        wait_attribution: dict[str, float] = {}
        before = self.now
        for at, flow in run.steps[job.lane]:
            if not before < start < inf:
                break
            # Whatever else went on in the lane: a flow at its cap waits for itself.
            if cap and sum(each.start <= before < each.end for each in own) >= cap:
                flow = job.flow
            wait_attribution[flow] = wait_attribution.get(flow, 0.0) + min(at, start) - before
            before = at
        return wait_attribution

    def _eta(self, job: Job, instant: Instant, now: float | None) -> Eta:
        said = self._central(job, instant).times[job].at(instant) - self.now
        gone = 0.0 if now is None else now - self.now
        p90 = said * max(1.0, self._pace.errors[instant].factor(said))
        return Eta(max(0.0, said - gone), max(0.0, p90 - gone))

    def _central(self, job: Job, instant: Instant) -> "Run":
        return sorted(self._runs, key=lambda run: run.times[job].at(instant))[len(self._runs) // 2]


class Run:
    """The run forward. `admission` is its own, and changes."""

    def __init__(self, admission: Admission, now: float, pace: EngineSpeed, future: int = 0) -> None:
        self.admission = admission
        self.now = now
        self.pace = pace
        self._future = future
        self.times: dict[Job, _Times] = {}
        self.steps: dict[Lane, list[_Step]] = {lane: [] for lane in LANES}
        self._parts: dict[Job, Slice] = {}  # next or now, of those that come in slices
        self._prefilling: dict[Lane, list[_Prefilling]] = {lane: [] for lane in LANES}
        self._decoding: list[tuple[float, int, Job, int]] = []  # at which count of tokens it ends, and with how many
        self._tokens = 0.0  # that each sequence has had since the run began
        self._sequences = 0
        self._answers = 0
        self._dispatched = pace.dispatched
        served = pace.served_by(now)
        for lane, jobs in pace.prefilling.items():
            for job, number in jobs.items():
                work = pace.work(job, pace.tracks[job].part)
                left = work if self._prefilling[lane] else max(work - served[lane], work * OVERDUE)
                self._prefilling[lane].append(_Prefilling(job, left, number))
        for job, track in pace.tracks.items():
            times = self.times[job] = _Times()
            if track.part:
                self._parts[job] = track.part
            if track.let_go is not None or track.slices:
                times.start = now
            if track.first_token is not None:
                times.first_token = now
                self._decode(job, track.tokens, track.max_tokens)

    def arrive(self, job: Job) -> None:
        self.times[job] = _Times()
        self._let_go(self.admission.arrive(job), job)

    def copy(self) -> Self:
        """For another future: what happens there does not happen here."""
        clone = copy(self)
        clone.admission = self.admission.copy()
        clone.times = {job: copy(times) for job, times in self.times.items() if times.end == inf}
        clone.steps = {lane: steps.copy() for lane, steps in self.steps.items()}
        clone._parts = self._parts.copy()
        clone._prefilling = {lane: [replace(each) for each in jobs] for lane, jobs in self._prefilling.items()}
        clone._decoding = self._decoding.copy()
        return clone

    def until(self, when: float = inf, *, first_token_of: Job | None = None) -> Self:
        """Go on to an instant, or until that job has its first token, or to the end."""
        times = self.times[first_token_of] if first_token_of else None
        while (times is None or times.first_token == inf) and self._step(when):
            pass
        return self

    def _step(self, when: float) -> bool:
        """Go on to the next event, if it comes by then, else to `when`."""
        firsts = {lane: jobs[0] for lane, jobs in self._prefilling.items() if jobs}
        mode, rates = self.pace.rates({lane: first.number for lane, first in firsts.items()})
        tokens_s = self.pace.token_rate(mode, self._sequences)
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
        part = self._parts.get(job)
        if part and part.rest > 0:
            part = self._parts[job] = _following(part)
            self._let_go(self.admission.slice_done(job, part), job)
            return
        track = self.pace.tracks.get(job)
        self.times[job].first_token = self.now
        self._decode(job, 1, track.max_tokens if track else None)
        self._let_go(self.admission.first_token(job), job)

    def _decode(self, job: Job, tokens: int, max_tokens: int | None) -> None:
        self._answers += 1
        quantile = (self._answers * GOLDEN + self._future * SILVER) % 1
        in_the_end = self.pace.answers.expect(tokens, max_tokens, quantile)
        heappush(self._decoding, (self._tokens + in_the_end - tokens, self._answers, job, in_the_end))
        self._sequences += job.seats

    def _end(self) -> None:
        _, _, job, tokens = heappop(self._decoding)
        self._sequences -= job.seats
        self.times[job].end = self.now
        self._let_go(self.admission.finish(job, job.cost + self.pace.decode_cost(tokens)), job)

    def _let_go(self, jobs: list[Job], because: Job) -> None:
        for job in jobs:
            times, part = self.times[job], self._parts.get(job)
            if times.start == inf:
                times.start = self.now
                self.steps[job.lane].append(_Step(self.now, because.flow))
            self._prefilling[job.lane].append(_Prefilling(job, self.pace.work(job, part), self._dispatched))
            self._dispatched += 1


def _following(part: Slice) -> Slice:
    """The slices after this one are taken to be as long as it is: deeper ones have fewer tokens, not more seconds."""
    seconds = part.rest / max(1, round(part.rest / part.cost)) if part.cost > 0 else part.rest
    return Slice(part.tokens, seconds, part.rest - seconds)


def forecast(admission: Admission, now: float, pace: EngineSpeed) -> Outlook:
    """What happens to all that wait and run. Reads both, changes neither."""
    futures = min(FUTURES, max(1, FUTURE_JOBS // max(1, len(pace.tracks))))
    futures -= 1 - futures % 2  # an odd number has one in the middle
    return Outlook([Run(admission.copy(), now, pace, future).until() for future in range(futures)], now, pace)


def meets(admission: Admission, now: float, pace: EngineSpeed, job: Job) -> bool:
    """Whether a job that comes now may be expected to have its first token by its deadline.

    Always, where nobody runs or waits: no forecast is so good that it may turn away the only one there is.
    """
    if job.deadline == inf or not admission.running + sum(map(admission.waiting, LANES)):
        return True
    return _in_time(Run(admission.copy(), now, pace), job)


def retry_after(admission: Admission, now: float, pace: EngineSpeed, job: Job) -> float:
    """Seconds, 1 to 60, after which a job like this one, coming then, would not be refused and have its first token
    as long after its arrival as this one's deadline is after its own. At most a third and a second too late.

    It costs up to a dozen futures as long as the deadline. Whoever turns many away keeps the answer, by flow and
    lane, for a second.
    """
    run, patience = Run(admission.copy(), now, pace), job.deadline - job.arrival
    seconds = MIN_RETRY_S
    while seconds < MAX_RETRY_S:
        run.until(now + seconds)
        again = replace(job, arrival=run.now, deadline=run.now + patience)
        if not run.admission.refuses(again) and (patience == inf or _in_time(run.copy(), again)):
            return seconds
        # What it is late by is no guide: who comes later may be served before who came sooner.
        seconds += max(MIN_RETRY_S, seconds / 3)
    return MAX_RETRY_S


def _in_time(run: Run, job: Job) -> bool:
    run.arrive(job)
    return run.until(job.deadline, first_token_of=job).times[job].first_token <= job.deadline

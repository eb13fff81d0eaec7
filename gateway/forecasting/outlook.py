"""What is to be expected of all that wait and run, and of a job that would come now."""

from dataclasses import replace
from math import inf
from typing import NamedTuple

from gateway.forecasting.progress import INSTANTS, Instant, Medians
from gateway.forecasting.simulation import Simulation
from gateway.forecasting.speed import EngineSpeed
from gateway.scheduling.admission import Admission
from policies.base import LANES, Job

MAX_RETRY_S = 60.0
MIN_RETRY_S = 1.0
FUTURES, FUTURE_JOBS = 5, 600  # so many futures at most, and of so many jobs in all


class Eta(NamedTuple):
    """Seconds from now."""

    median: float
    p90: float


class Outlook:
    """What is to be expected as of one instant; medians are over a few futures. It holds until admission is told of
    something that it did not expect; `now` may go on meanwhile, and what it tells is seconds from then."""

    def __init__(self, futures: list[Simulation], now: float, speed: EngineSpeed) -> None:
        self.now = now
        self._futures = futures
        self._speed = speed

    def __contains__(self, job: Job) -> bool:
        return job in self._futures[0].times

    def start(self, job: Job, now: float | None = None) -> Eta:
        return self._eta(job, "start", now)

    def first_token(self, job: Job, now: float | None = None) -> Eta:
        return self._eta(job, "first_token", now)

    def end(self, job: Job, now: float | None = None) -> Eta:
        return self._eta(job, "end", now)

    def medians(self, job: Job) -> Medians:
        """As `EngineSpeed.promise` takes them."""
        return {instant: self._eta(job, instant, None).median for instant in INSTANTS}

    def wait_attribution(self, job: Job) -> dict[str, float]:
        """Seconds of the wait to start, by the flow that gave back what the lane waited for. They sum to that wait."""
        future = self._central(job, "start")
        start, cap = future.times[job].start, future.admission.limits.in_flight(job)
        own = [times for other, times in future.times.items() if cap and other.flow == job.flow]
        waits: dict[str, float] = {}
        before = self.now
        for at, flow in future.moves[job.lane]:
            if not before < start < inf:
                break
            # Whatever else went on in the lane: a flow at its cap waits for itself.
            if cap and sum(each.start <= before < each.end for each in own) >= cap:
                flow = job.flow
            waits[flow] = waits.get(flow, 0.0) + min(at, start) - before
            before = at
        return waits

    def _eta(self, job: Job, instant: Instant, now: float | None) -> Eta:
        median = self._central(job, instant).times[job].at(instant) - self.now
        elapsed = 0.0 if now is None else now - self.now
        p90 = median * max(1.0, self._speed.errors[instant].factor(median))
        return Eta(max(0.0, median - elapsed), max(0.0, p90 - elapsed))

    def _central(self, job: Job, instant: Instant) -> Simulation:
        return sorted(self._futures, key=lambda future: future.times[job].at(instant))[len(self._futures) // 2]


def forecast(admission: Admission, now: float, speed: EngineSpeed) -> Outlook:
    """What happens to all that wait and run. Reads both, changes neither."""
    futures = min(FUTURES, max(1, FUTURE_JOBS // max(1, len(speed.progress))))
    futures -= 1 - futures % 2  # an odd number has one in the middle
    runs = [Simulation(admission.copy(), now, speed, future).until() for future in range(futures)]
    return Outlook(runs, now, speed)


def meets(admission: Admission, now: float, speed: EngineSpeed, job: Job) -> bool:
    """Whether a job that comes now may be expected to have its first token by its deadline.

    Always, where nobody runs or waits: no forecast is so good that it may turn away the only one there is.
    """
    if job.deadline == inf or not admission.running + sum(map(admission.waiting, LANES)):
        return True
    return _in_time(Simulation(admission.copy(), now, speed), job)


def retry_after(admission: Admission, now: float, speed: EngineSpeed, job: Job) -> float:
    """Seconds, 1 to 60, after which a job like this one, coming then, would not be refused and have its first token
    as long after its arrival as this one's deadline is after its own. At most a third and a second too late.

    It costs up to a dozen futures as long as the deadline. Whoever turns many away keeps the answer, by flow and
    lane, for a second.
    """
    future, patience = Simulation(admission.copy(), now, speed), job.deadline - job.arrival
    seconds = MIN_RETRY_S
    while seconds < MAX_RETRY_S:
        future.until(now + seconds)
        again = replace(job, arrival=future.now, deadline=future.now + patience)
        if not future.admission.rejects(again) and (patience == inf or _in_time(future.copy(), again)):
            return seconds
        # What it is late by is no guide: who comes later may be served before who came sooner.
        seconds += max(MIN_RETRY_S, seconds / 3)
    return MAX_RETRY_S


def _in_time(future: Simulation, job: Job) -> bool:
    future.arrive(job)
    return future.until(job.deadline, first_token_of=job).times[job].first_token <= job.deadline

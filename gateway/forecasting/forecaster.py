"""Keeps a forecast at hand: tells the engine's speed what happens, and looks ahead no more often than it pays."""

from collections.abc import Callable
from math import inf

from gateway.forecasting import outlook
from gateway.forecasting.outlook import Outlook
from gateway.forecasting.speed import EngineSpeed
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Arrived, Event, FirstToken
from policies.base import Job, Lane

# Seconds for which an outlook may serve although something has happened since, where more than a few jobs make it
# cost something.
MAX_AGE_S = 0.5
RETRY_AGE_S = 2.0
POSITION_AGE_S = 2.0
FEW_JOBS = 10


class Forecaster:
    """Driven by whoever drives the admission, with the same events, and the time on the driver's clock.

    `on_error` is told, of each first token that was forecast, how long it took over how long it was said to take.
    """

    def __init__(
        self, admission: Admission, speed: EngineSpeed, on_error: Callable[[float], object] = lambda ratio: None
    ) -> None:
        self.speed = speed
        self._admission = admission
        self._on_error = on_error
        self._outlook: Outlook | None = None
        self._stale = True
        self._retry: dict[Lane, tuple[float, float]] = {}
        self._positions: tuple[Outlook | None, dict[Job, int]] = None, {}

    def observe(self, event: Event, dispatched: list[Job], now: float) -> None:
        self._stale = True
        if isinstance(event, FirstToken) and event.observed:
            self._compare(event.job, now)
        self.speed.observe(event, dispatched, now)
        if isinstance(event, Arrived) and event.job not in dispatched:
            self._promise(event.job, now)

    def outlook(self, now: float, max_age: float = MAX_AGE_S) -> Outlook:
        """At most so many seconds old."""
        age = inf if self._outlook is None else now - self._outlook.now
        if self._outlook is None or (self._stale and (age >= max_age or len(self.speed.progress) <= FEW_JOBS)):
            self._outlook = outlook.forecast(self._admission, now, self.speed)
            self._stale = False
        return self._outlook

    def position(self, job: Job, now: float) -> tuple[int | None, float]:
        """Its position among those that wait, by when they are expected to go, None if it does not wait; and seconds
        to its first token. For many who ask often: worked out once an outlook, and that may be a little older.
        """
        expected = self.outlook(now, POSITION_AGE_S)
        if self._positions[0] is not expected:
            waiting = [each for each, progress in self.speed.progress.items() if progress.queued and each in expected]
            waiting.sort(key=lambda each: (expected.start(each).median, each.arrival))
            self._positions = expected, {each: position for position, each in enumerate(waiting, start=1)}
        return self._positions[1].get(job), expected.first_token(job, now).median if job in expected else inf

    def meets(self, job: Job, now: float) -> bool:
        """Whether a job that comes now may be expected to have its first token by its deadline."""
        return outlook.meets(self._admission, now, self.speed, job)

    def retry_after(self, job: Job, now: float) -> float:
        """Seconds, 1 to 60, after which a job like this one would be taken, and meet its deadline.

        The dearest of the questions: where many jobs are here, it is worked out once in a while and told to all who
        come by the same lane meanwhile.
        """
        at, seconds = self._retry.get(job.lane, (-inf, 0.0))
        if len(self.speed.progress) > FEW_JOBS and now - at < RETRY_AGE_S:
            return seconds
        seconds = outlook.retry_after(self._admission, now, self.speed, job)
        self._retry[job.lane] = now, seconds
        return seconds

    def _promise(self, job: Job, now: float) -> None:
        """What it may expect; what comes is compared with it. In a rush of arrivals not everybody is asked."""
        expected = self.outlook(now)
        if job in expected:
            self.speed.promise(job, now, expected.medians(job))

    def _compare(self, job: Job, now: float) -> None:
        progress = self.speed.progress.get(job)
        if progress and progress.promise and progress.first_token_at is None:
            at, medians = progress.promise
            self._on_error((now - at) / max(medians["first_token"], 0.1))

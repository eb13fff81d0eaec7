"""Keeps a forecast at hand: tells the pace of what happens, and looks ahead no more often than it pays."""

from collections.abc import Callable
from math import inf

from gateway.forecasting import simulation
from gateway.forecasting.simulation import Outlook
from gateway.forecasting.speed import EngineSpeed
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Event
from policies.base import Job, Lane

# Seconds for which an outlook may serve although something has happened since, where more than a few jobs make it
# cost something.
MAX_AGE_S = 0.5
RETRY_AGE_S = 2.0
PLACE_AGE_S = 2.0
FEW_JOBS = 10


def learn(pace: EngineSpeed, event: Event, dispatched: list[Job], now: float) -> None:
    """What the pace is to know of an event, and of those who were let go by it."""
    if (job := event.job) is not None:
        match event.kind:
            case "arrive":
                pace.waits(job, event.max_tokens, event.part)
            case "slice_done" if event.part:
                pace.slice_done(job, event.part, now, seen=not event.guessed)
            case "first_token":
                pace.first_token(job, now, seen=not event.guessed)
            case "finish" | "leave":
                pace.ends(job, now, event.output_tokens)
    if dispatched:
        pace.let_go(dispatched, now)


class Forecaster:
    """Driven by whoever drives the admission, with the same events, and the time on the driver's clock.

    `on_error` is told, of each first token that was forecast, how long it took over how long it was said to take.
    """

    def __init__(
        self, admission: Admission, pace: EngineSpeed, on_error: Callable[[float], object] = lambda ratio: None
    ) -> None:
        self.pace = pace
        self._admission = admission
        self._on_error = on_error
        self._outlook: Outlook | None = None
        self._stale = True
        self._retry: dict[Lane, tuple[float, float]] = {}
        self._places: tuple[Outlook | None, dict[Job, int]] = None, {}

    def happened(self, event: Event, dispatched: list[Job], now: float) -> None:
        self._stale = True
        if event.kind == "first_token" and event.job is not None and not event.guessed:
            self._compare(event.job, now)
        learn(self.pace, event, dispatched, now)
        if event.kind == "arrive" and event.job is not None and event.job not in dispatched:
            self._say(event.job, now)

    def outlook(self, now: float, max_age: float = MAX_AGE_S) -> Outlook:
        """At most so many seconds old."""
        age = inf if self._outlook is None else now - self._outlook.now
        if self._outlook is None or (self._stale and (age >= max_age or len(self.pace.tracks) <= FEW_JOBS)):
            self._outlook = simulation.forecast(self._admission, now, self.pace)
            self._stale = False
        return self._outlook

    def place(self, job: Job, now: float) -> tuple[int | None, float]:
        """Its place among those that wait, by when they are expected to go, None if it does not wait; and seconds to
        its first token. For many who ask often: worked out once an outlook, and that may be a little older.
        """
        outlook = self.outlook(now, PLACE_AGE_S)
        if self._places[0] is not outlook:
            waiting = [each for each, track in self.pace.tracks.items() if track.waits and each in outlook]
            waiting.sort(key=lambda each: (outlook.start(each).median, each.arrival))
            self._places = outlook, {each: place for place, each in enumerate(waiting, start=1)}
        return self._places[1].get(job), outlook.first_token(job, now).median if job in outlook else inf

    def meets(self, job: Job, now: float) -> bool:
        """Whether a job that comes now may be expected to have its first token by its deadline."""
        return simulation.meets(self._admission, now, self.pace, job)

    def retry_after(self, job: Job, now: float) -> float:
        """Seconds, 1 to 60, after which a job like this one would be taken, and meet its deadline.

        The dearest of the questions: where many jobs are here, it is worked out once in a while and told to all who
        come by the same lane meanwhile.
        """
        at, seconds = self._retry.get(job.lane, (-inf, 0.0))
        if len(self.pace.tracks) > FEW_JOBS and now - at < RETRY_AGE_S:
            return seconds
        seconds = simulation.retry_after(self._admission, now, self.pace, job)
        self._retry[job.lane] = now, seconds
        return seconds

    def answer_tokens(self, max_tokens: int | None) -> int:
        """How long an answer is to be reckoned with: the 90th percentile of those that were, at most what was asked."""
        return self.pace.answers.expect(0, max_tokens, 0.9)

    def _say(self, job: Job, now: float) -> None:
        """What it may expect; what comes is held against it. In a rush of arrivals not everybody is asked."""
        outlook = self.outlook(now)
        if job in outlook:
            self.pace.said(job, now, outlook.medians(job))

    def _compare(self, job: Job, now: float) -> None:
        track = self.pace.tracks.get(job)
        if track and track.said and track.first_token is None:
            at, medians = track.said
            self._on_error((now - at) / max(medians["first_token"], 0.1))

"""How fast the engine has been: what a forecast needs to know of it, learned as jobs go by.

The driver keeps an `EngineSpeed` and tells it of what it tells admission, with the time; it has no clock of its own.
All that is learned is a handful of sums and two bounded windows. Recent samples weigh most; no one sample does harm.

    slowdown[lane]  wall seconds that a predicted second of prefill takes: a wrong profile, and decode beside it
    share           of the engine that short prefill gets while long prefill runs beside it, where they share steps
    step            seconds a token while so many sequences decode and nobody prefills: `gateway.pricing.curves`
    tokens[mode]    tokens a second that each sequence still gets while prompts are prefilled
    answers         how many tokens an answer has: the last few hundred answers
    errors          how much later than forecast things came: see `ForecastErrors`
"""

from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from gateway.forecasting.progress import INSTANTS, Instant, JobProgress, Medians
from gateway.pricing.curves import StepCurve
from gateway.pricing.estimators import AnswerLengths, ForecastErrors, Ratio
from gateway.scheduling import events
from gateway.scheduling.events import Event
from gateway.scheduling.ticket import Slice
from policies.base import LANES, Job, Lane

Mode = Literal["short", "long", "both"]

# Prefills of a lane, kept to be priced anew when the curve is known better.
SAMPLES = 64
PROBE = 10_000  # tokens whose price changes when the curve does

# The 90th percentile over the median, before any error was seen.
PRIOR_RATIO: dict[Instant, float] = dict.fromkeys(INSTANTS, 3.0)

# Tokens a second that a sequence gets beside prefill, before any were seen.
PRIOR_TOKENS: dict[Mode, float] = {"short": 2.0, "long": 0.5, "both": 1.0}

# Tokens of a running stream, with nobody in prefill, that make a sample of the decode step.
STEP_SAMPLE_TOKENS = 8


class _Sample(NamedTuple):
    """Wall seconds of a prefill, what they were predicted to be, and of what; price is that of all the tokens then."""

    seconds: float
    cost: float
    tokens: int
    price: float


class EngineSpeed:
    """
    slowdown    of each lane: wall seconds that a predicted second of its prefill takes
    share       of the engine that short prefill gets while long prefill runs beside it
    tokens      a second that each sequence gets while prompts are prefilled, by who is in prefill
    answers     how long answers are
    errors      of forecasts
    dispatches  so far
    prefilling  the jobs in prefill, and which dispatch was theirs
    served      wall seconds of work that the first of each lane has had
    """

    def __init__(
        self,
        decode_cost: Callable[[int], float] = lambda tokens: 0.0,
        step: StepCurve | None = None,
        *,
        shares_steps: bool = False,
        prefill_cost: Callable[[int], float] = lambda tokens: 0.0,
    ) -> None:
        """
        decode_cost   what so many output tokens are charged, in engine seconds
        prefill_cost  of so many prompt tokens, in engine seconds, by the curve as it is known by now: who came before
                      was priced by an older one, and `slowdown` is over the newest
        step          the curve of decode steps that it teaches; one of its own, if it is given none
        shares_steps  the engine cuts long prompts (its long prefill threshold), so that short ones prefill beside them;
                      else it prefills in the order of dispatch
        """
        self.decode_cost = decode_cost
        self.prefill_cost = prefill_cost
        self.shares_steps = shares_steps
        self.step = step or StepCurve()
        self.slowdown = {lane: Ratio(1.0, prior_weight=1.0) for lane in LANES}
        self.share = Ratio(0.5, prior_weight=1.0, low=0.1, high=0.9)
        self.tokens: dict[Mode, Ratio] = {
            mode: Ratio(rate, prior_weight=1.0, low=0.01, high=1000.0) for mode, rate in PRIOR_TOKENS.items()
        }
        self.answers = AnswerLengths()
        self.errors = {name: ForecastErrors(ratio) for name, ratio in PRIOR_RATIO.items()}
        self.progress: dict[Job, JobProgress] = {}
        self.dispatches = 0
        self.prefilling: dict[Lane, dict[Job, int]] = {lane: {} for lane in LANES}
        self.served = dict.fromkeys(LANES, 0.0)
        self._samples: dict[Lane, deque[_Sample]] = {lane: deque(maxlen=SAMPLES) for lane in LANES}
        self._probe = 0.0
        self._beside = 0.0  # of the short lane's first: seconds with a long one beside it
        self._now = 0.0
        self._decoding: dict[Job, bool] = {}  # whether its tokens are seen as they come
        self._sequences = 0
        self._pulse: tuple[Job, int] | None = None
        self._free_s = self._free_tokens = self._free_n = 0.0

    # What happened.

    def observe(self, event: Event, dispatched: list[Job], now: float) -> None:
        """An event that admission was told of, and the jobs that it dispatched."""
        match event:
            case events.Arrived(job, first_slice, max_tokens):
                self.queued(job, max_tokens, first_slice)
            case events.SliceDone(job, following, observed):
                self.slice_done(job, following, now, observed=observed)
            case events.FirstToken(job, observed):
                self.first_token(job, now, observed=observed)
            case events.Finished(job, _, output_tokens):
                self.ended(job, now, output_tokens)
            case events.Left(job):
                self.ended(job, now)
        if dispatched:
            self.dispatched(dispatched, now)

    def queued(self, job: Job, max_tokens: int | None = None, first_slice: Slice | None = None) -> None:
        self.progress[job] = JobProgress(max_tokens, self.prefill_cost(job.tokens), first_slice)

    def dispatched(self, jobs: list[Job], now: float) -> None:
        self._pass(now)
        for job in jobs:
            progress = self.progress.setdefault(job, JobProgress())
            progress.dispatched_at, progress.number, progress.decoding = now, self.dispatches, self._sequences
            progress.concurrent.clear()
            for other in [other for prefilling in self.prefilling.values() for other in prefilling]:
                progress.concurrent.append((other, self.progress[other]))
                self.progress[other].concurrent.append((job, progress))
            if not progress.slices_done:
                self._came(progress, "start", now)
            self.prefilling[job.lane][job] = self.dispatches
            self.dispatches += 1

    def slice_done(self, job: Job, following: Slice, now: float, *, observed: bool = True) -> None:
        """It waits for its next slice. From one that nobody saw done nothing is learned."""
        self._pass(now)
        progress = self.progress[job]
        if observed:
            self._prefilled(job, progress)
        else:
            self._leave_prefill(job)
        progress.slices_done += 1
        progress.dispatched_at, progress.slice = None, following

    def first_token(self, job: Job, now: float, *, observed: bool = True) -> None:
        """Told again, it changes nothing. From one that nobody saw, but took to have come, nothing is learned."""
        self._pass(now)
        progress = self.progress[job]
        if progress.first_token_at is None:
            progress.observed = observed
            if observed:
                self._prefilled(job, progress)
                self._came(progress, "first_token", now)
            else:
                self._leave_prefill(job)
            progress.first_token_at, progress.tokens = now, max(progress.tokens, 1)
            self._decoding[job] = observed
            self._sequences += job.seats

    def ended(self, job: Job, now: float, output_tokens: int | None = None) -> None:
        """It is gone, from wherever it was. `output_tokens` of a whole answer; of one that broke off, None."""
        self._pass(now)
        progress = self.progress.pop(job, JobProgress())
        progress.concurrent.clear()  # each holds others', and so on
        if job in self.prefilling[job.lane]:
            self._leave_prefill(job)
        if job in self._decoding:
            del self._decoding[job]
            self._sequences -= job.seats
        if output_tokens is not None and progress.first_token_at is not None:
            self._came(progress, "end", now)
            self.answers.observe(output_tokens)

    def promise(self, job: Job, now: float, medians: Medians) -> None:
        """It was told to expect these, in seconds from now. What comes is compared with the first forecast alone."""
        progress = self.progress[job]
        progress.promise = progress.promise or (now, medians)

    # What is the case.

    @property
    def sequences(self) -> int:
        """That decode."""
        return self._sequences

    def is_contended(self, job: Job) -> bool:
        """Whether anybody else is here, or was dispatched since this job, or its slice, was."""
        return len(self.progress) > 1 or self.dispatches > self.progress[job].number + 1

    # What is to be expected.

    def work(self, job: Job, piece: Slice | None = None) -> float:
        """Wall seconds of prefill, nothing else being prefilled."""
        self._reprice()
        return self._price(job, piece) * self.slowdown[job.lane].value

    def rates(self, firsts: dict[Lane, int]) -> tuple[Mode | None, dict[Lane, float]]:
        """How the engine is shared by the lanes that prefill, given the number of the first of each."""
        if not firsts:
            return None, {}
        if len(firsts) == 2 and self.shares_steps:
            return "both", {"short": self.share.value, "long": 1 - self.share.value}
        lane = min(firsts, key=lambda lane: firsts[lane])
        return lane, {lane: 1.0}

    def token_rate(self, mode: Mode | None, sequences: int) -> float:
        """Tokens a second that each of so many sequences gets."""
        alone = 1 / self.step.at(sequences)
        return alone if mode is None else min(alone, self.tokens[mode].value)

    # How it is learned.

    def _came(self, progress: JobProgress, instant: Instant, now: float) -> None:
        if progress.promise:
            at, medians = progress.promise
            self.errors[instant].observe(medians[instant], now - at)

    def _firsts(self) -> dict[Lane, int]:
        return {lane: next(iter(jobs.values())) for lane, jobs in self.prefilling.items() if jobs}

    def served_by(self, now: float) -> dict[Lane, float]:
        """Wall seconds of work that the first in each lane has had."""
        _, rates = self.rates(self._firsts())
        since = max(0.0, now - self._now)
        return {lane: served + rates.get(lane, 0.0) * since for lane, served in self.served.items()}

    def _pass(self, now: float) -> None:
        """Time goes by, with what has been the case since the last event."""
        seconds = max(0.0, now - self._now)
        mode, _ = self.rates(self._firsts())
        self.served, self._now = self.served_by(now), max(self._now, now)
        if mode == "both":
            self._beside += seconds
        self._count_tokens(mode, seconds)

    def _count_tokens(self, mode: Mode | None, seconds: float) -> None:
        """One sequence stands for all that decode: they all get a token in each step."""
        if self._pulse is None or self._pulse[0] not in self._decoding:
            job = next((job for job in reversed(self._decoding) if self._decoding[job]), None)
            self._pulse = None if job is None else (job, self.progress[job].tokens)
            self._free_s = self._free_tokens = self._free_n = 0.0
            return
        job, before = self._pulse
        tokens = self.progress[job].tokens - before
        self._pulse = job, before + tokens
        if mode is not None:
            self.tokens[mode].observe(tokens, seconds)
            return
        self._free_s += seconds
        self._free_tokens += tokens
        self._free_n += seconds * self._sequences
        if self._free_tokens >= STEP_SAMPLE_TOKENS:
            self.step.observe(self._free_n / self._free_s, self._free_s / self._free_tokens)
            self._free_s = self._free_tokens = self._free_n = 0.0

    def _price(self, job: Job, piece: Slice | None) -> float:
        """What its prefill is predicted to take, by the curve as it is known by now."""
        progress = self.progress.get(job)
        return (piece.cost_s if piece else job.cost) * (self._better(job.tokens, progress.price_s) if progress else 1.0)

    def _reprice(self) -> None:
        """What was seen before the curve was known as it is now, is held against the curve as it is now."""
        probe = self.prefill_cost(PROBE)
        if probe == self._probe:
            return
        self._probe = probe
        for lane, samples in self._samples.items():
            if samples:
                self.slowdown[lane] = Ratio(1.0, prior_weight=1.0)
                for sample in samples:
                    self.slowdown[lane].observe(sample.seconds, sample.cost * self._better(sample.tokens, sample.price))

    def _better(self, tokens: int, then: float) -> float:
        return self.prefill_cost(tokens) / then if then > 0 else 1.0

    def _prefilled(self, job: Job, progress: JobProgress) -> None:
        self._reprice()
        predicted = self._price(job, progress.slice)
        if job.lane == "short" and self._beside > 0:
            self.share.observe(predicted * self.slowdown["short"].value, self._beside)
        else:
            self.slowdown[job.lane].observe(self.served[job.lane], predicted)
            sample = _Sample(self.served[job.lane], predicted, job.tokens, self.prefill_cost(job.tokens))
            self._samples[job.lane].append(sample)
        self._leave_prefill(job)

    def _leave_prefill(self, job: Job) -> None:
        jobs = self.prefilling[job.lane]
        if next(iter(jobs)) is job:
            self.served[job.lane] = 0.0
            self._beside = 0.0 if job.lane == "short" else self._beside
        del jobs[job]

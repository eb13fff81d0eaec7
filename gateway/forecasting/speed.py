"""How fast the engine has been: what a forecast needs to know of it, learned as jobs go by.

The driver keeps an `EngineSpeed` and tells it of what it tells admission, with the time; it has no clock of its own.
All that is learned is a handful of sums and two bounded windows. Recent samples weigh most; no one sample does harm.

    slowdown[lane]   wall seconds that a predicted second of prefill takes: a wrong profile, and decode beside it
    share           of the engine that short prefill gets while long prefill runs beside it, where they share steps
    step            seconds a token while so many sequences decode and nobody prefills: `gateway.pricing.curves`
    tokens[mode]    tokens a second that each sequence still gets while prompts are prefilled
    answer          how many tokens an answer has: the last few hundred answers
    errors          how much later than forecast things came: see `ForecastErrors`
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from gateway.pricing.curves import PrefillObservation, StepCurve
from gateway.pricing.estimators import AnswerLengths, ForecastErrors, Ratio
from gateway.scheduling.ledger import Slice
from policies.base import LANES, Job, Lane

Mode = Literal["short", "long", "both"]
Instant = Literal["start", "first_token", "end"]
INSTANTS: tuple[Instant, ...] = get_args(Instant)

# Prefills of a lane, kept to be priced anew when the curve is known better.
SAMPLES = 64
PROBE = 10_000  # tokens whose price changes when the curve does

# The 90th percentile over the median, before any error was seen.
PRIOR_RATIO: dict[Instant, float] = dict.fromkeys(INSTANTS, 3.0)


@dataclass(slots=True, eq=False)
class JobProgress:
    """One job as the driver sees it. Instants are seconds on its clock, tokens are of the answer so far.

    price       of its prompt, by the curve as it was when it came
    let_go      when it, or its slice, went to the engine; None while it waits
    part        what of its prefill is done at once, if it comes in slices
    slices      of it that are done, if it comes in slices
    said        when it was told what to expect, and in how many seconds from then
    number      which dispatch that was
    beside      sequences that decoded then
    others      who has been in prefill with it since
    observed    its first token was seen, not taken to have come
    """

    max_tokens: int | None = None
    price: float = 0.0
    let_go: float | None = None
    first_token: float | None = None
    tokens: int = 0
    part: Slice | None = None
    slices: int = 0
    said: tuple[float, dict[Instant, float]] | None = None
    number: int = 0
    beside: int = 0
    others: "list[tuple[Job, JobProgress]]" = field(default_factory=list)
    observed: bool = False

    @property
    def waits(self) -> bool:
        """It has not begun."""
        return self.let_go is None and not self.slices

    def seen(self, first_token: float | None = None) -> PrefillObservation | None:
        """Its prefill, or its slice, if all who shared it came and were done meanwhile: then the time was theirs and
        its own. `first_token` is when it came, where somebody knows that better, or when the slice was done. Asked
        before it ends, or goes on."""
        if first_token is None and self.observed:
            first_token = self.first_token
        if self.let_go is None or first_token is None:
            return None
        for _, other in self.others:
            if other.let_go is None or other.first_token is None or not other.observed or other.slices:
                return None
            if other.let_go < self.let_go or other.first_token > first_token:
                return None
        return PrefillObservation(first_token - self.let_go, self.beside, tuple(job.tokens for job, _ in self.others))


class _Sample(NamedTuple):
    """Wall seconds of a prefill, what they were predicted to be, and of what; price is that of all the tokens then."""

    seconds: float
    cost: float
    tokens: int
    price: float


class EngineSpeed:
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
        self.tracks: dict[Job, JobProgress] = {}
        self.slowdown = {lane: Ratio(1.0, prior_weight=1.0) for lane in LANES}
        self._samples: dict[Lane, deque[_Sample]] = {lane: deque(maxlen=SAMPLES) for lane in LANES}
        self._probe = 0.0
        self.share = Ratio(0.5, prior_weight=1.0, low=0.1, high=0.9)
        self.tokens: dict[Mode, Ratio] = {
            "short": Ratio(2.0, prior_weight=1.0, low=0.01, high=1000.0),
            "long": Ratio(0.5, prior_weight=1.0, low=0.01, high=1000.0),
            "both": Ratio(1.0, prior_weight=1.0, low=0.01, high=1000.0),
        }
        self.step = step or StepCurve()
        self.answers = AnswerLengths()
        self.errors: dict[Instant, ForecastErrors] = {
            name: ForecastErrors(ratio) for name, ratio in PRIOR_RATIO.items()
        }
        # Jobs in prefill, and which dispatch was theirs; wall seconds of work that the first of each lane has had.
        self.dispatched = 0
        self.prefilling: dict[Lane, dict[Job, int]] = {lane: {} for lane in LANES}
        self.served = dict.fromkeys(LANES, 0.0)
        self._beside = 0.0  # of the short lane's first: seconds with a long one beside it
        self._now = 0.0
        self._decoding: dict[Job, bool] = {}  # whether its tokens are seen as they come
        self._sequences = 0
        self._pulse: tuple[Job, int] | None = None
        self._free_s = self._free_tokens = self._free_n = 0.0

    # What happened.

    def waits(self, job: Job, max_tokens: int | None = None, part: Slice | None = None) -> None:
        self.tracks[job] = JobProgress(max_tokens, self.prefill_cost(job.tokens), part=part)

    def let_go(self, jobs: list[Job], now: float) -> None:
        self._pass(now)
        for job in jobs:
            track = self.tracks.setdefault(job, JobProgress())
            track.let_go, track.number, track.beside = now, self.dispatched, self._sequences
            track.others.clear()
            for other in [other for prefilling in self.prefilling.values() for other in prefilling]:
                track.others.append((other, self.tracks[other]))
                self.tracks[other].others.append((job, track))
            if not track.slices:
                self._came(track, "start", now)
            self.prefilling[job.lane][job] = self.dispatched
            self.dispatched += 1

    def slice_done(self, job: Job, part: Slice, now: float, *, seen: bool = True) -> None:
        """It waits for its next slice, `part`. From one that was never seen done nothing is learned."""
        self._pass(now)
        track = self.tracks[job]
        if seen:
            self._prefilled(job, track)
        else:
            self._leave_prefill(job)
        track.slices += 1
        track.let_go, track.part = None, part

    def first_token(self, job: Job, now: float, *, seen: bool = True) -> None:
        """Told again, it changes nothing. From one that nobody saw, but took to have come, nothing is learned."""
        self._pass(now)
        track = self.tracks[job]
        if track.first_token is None:
            track.observed = seen
            if seen:
                self._prefilled(job, track)
                self._came(track, "first_token", now)
            else:
                self._leave_prefill(job)
            track.first_token, track.tokens = now, max(track.tokens, 1)
            self._decoding[job] = seen
            self._sequences += job.seats

    def token(self, job: Job) -> None:
        """One more token of its answer is out. Told before `first_token` of the first."""
        self.tracks[job].tokens += 1

    def ends(self, job: Job, now: float, output_tokens: int | None = None) -> None:
        """It is gone, from wherever it was. `output_tokens` of a whole answer; of one that broke off, None."""
        self._pass(now)
        track = self.tracks.pop(job, JobProgress())
        track.others.clear()  # each holds others', and so on
        if job in self.prefilling[job.lane]:
            self._leave_prefill(job)
        if job in self._decoding:
            del self._decoding[job]
            self._sequences -= job.seats
        if output_tokens is not None and track.first_token is not None:
            self._came(track, "end", now)
            self.answers.observe(output_tokens)

    def said(self, job: Job, now: float, medians: dict[Instant, float]) -> None:
        """It was told to expect these, in seconds from now. The first word holds: what came will be held against it."""
        track = self.tracks[job]
        track.said = track.said or (now, medians)

    # What is the case.

    @property
    def sequences(self) -> int:
        """That decode."""
        return self._sequences

    def company(self, job: Job) -> bool:
        """Whether anybody else is here, or has been let go since this job, or its slice, was."""
        return len(self.tracks) > 1 or self.dispatched > self.tracks[job].number + 1

    # What is to be expected.

    def work(self, job: Job, part: Slice | None = None) -> float:
        """Wall seconds of prefill, nothing else being prefilled."""
        self._reprice()
        return self._price(job, part) * self.slowdown[job.lane].value

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

    def _came(self, track: JobProgress, instant: Instant, now: float) -> None:
        if track.said:
            at, medians = track.said
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
            self._pulse = None if job is None else (job, self.tracks[job].tokens)
            self._free_s = self._free_tokens = self._free_n = 0.0
            return
        job, before = self._pulse
        tokens = self.tracks[job].tokens - before
        self._pulse = job, before + tokens
        if mode is not None:
            self.tokens[mode].observe(tokens, seconds)
            return
        self._free_s += seconds
        self._free_tokens += tokens
        self._free_n += seconds * self._sequences
        if self._free_tokens >= 8:
            self.step.observe(self._free_n / self._free_s, self._free_s / self._free_tokens)
            self._free_s = self._free_tokens = self._free_n = 0.0

    def _price(self, job: Job, part: Slice | None) -> float:
        """What its prefill is predicted to take, by the curve as it is known by now."""
        track = self.tracks.get(job)
        return (part.cost if part else job.cost) * (self._better(job.tokens, track.price) if track else 1.0)

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

    def _prefilled(self, job: Job, track: JobProgress) -> None:
        self._reprice()
        predicted = self._price(job, track.part)
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

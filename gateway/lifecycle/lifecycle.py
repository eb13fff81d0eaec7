"""One request, from its arrival to its settlement: what the gateway and the simulator both do, written once.

The driver tells it what happened, with the time on its own clock. It applies the events to admission, through the
driver's `apply`, and answers what to do. In order:

    arrived                          it waits
    dispatched                       what is due goes to the engine: a slice, or the request itself
      slice_answered, slice_failed   how long to pause before the next slice
      requeue                        it waits for its next slice; `dispatched` follows
    scheduled                        the engine has scheduled all that it was sent: the lane is free
    first_token, chunk               its answer begins, and goes on
    settle                           what it came to
    end                              its permit comes back, once, from wherever it was
    learn                            prices are corrected by what was seen
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from gateway.forecasting.progress import JobProgress
from gateway.lifecycle.core import Core
from gateway.lifecycle.settlement import Answer, FinishedSlice, Settlement
from gateway.lifecycle.slice_review import CacheReuse, SliceResult, SliceReview
from gateway.pricing.cost_model import PROGRESS_CHUNKS, Price
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.prompt import Prompt
from gateway.pricing.usage import PromptDetails, Usage
from gateway.scheduling.events import Arrived, Event, Finished, FirstToken, Left, Progressed, Scheduled, SliceDone
from gateway.scheduling.ticket import Ticket
from gateway.slicing.planner import SlicePlan
from policies.base import Job

# Where the time of the first token is from: seen in the stream, predicted, or the end of an answer that came whole.
TimingSource = Literal["observed", "predicted", "answer"]


@dataclass(frozen=True, slots=True)
class PricedRequest:
    """
    plan       how its prompt is cut, if it is
    streamed   its first token can be seen to come
    """

    prompts: Sequence[Prompt]
    price: Price
    model: str = ""
    max_tokens: int | None = None
    plan: SlicePlan | None = None
    streamed: bool = True


class LearnResult(NamedTuple):
    """`curve`: the prefill was a sample of the curve. The others as in `SliceResult`."""

    curve: bool = False
    tripped: str = ""
    reuse: CacheReuse | None = None


class Lifecycle:
    """
    slices          those that are done
    retried         the engine was away, or its connection broke: what it took says nothing of the engine
    chunks          of the answer, so far
    dispatched_at, first_token_at   on the driver's clock; None before they were
    timing_source   where `first_token_at` is from
    settlement      what it came to, once it has ended; before that, what was predicted of what has begun
    """

    def __init__(self, core: Core, job: Job, request: PricedRequest, apply: Callable[[Event], object]) -> None:
        self.job = job
        self.request = request
        self.slices: list[FinishedSlice] = []
        self.retried = False
        self.chunks = 0
        self.dispatched_at: float | None = None
        self.first_token_at: float | None = None
        self.timing_source: TimingSource = "observed"
        self.settlement = Settlement(0.0)
        self._core = core
        self._driver_apply = apply
        self._ended = False
        self._progress = JobProgress()
        self._review = SliceReview(core, request.model, request.plan) if request.plan else None
        self._sent_at = 0.0
        self._ended_at = 0.0
        # Of the slice that was sent last: is it done, says its time something of the engine, was somebody else here.
        self._slice_done = False
        self._slice_observed = False
        self._contended = False

    # Before the engine.

    def arrived(self) -> None:
        plan, job = self.request.plan, self.job
        self._apply(Arrived(job, plan.slice if plan else None, self.request.max_tokens))
        self._progress = self._core.speed.progress.get(job, self._progress)

    @property
    def ticket(self) -> Ticket:
        """Admission's record of it. KeyError before its arrival and after its end."""
        return self._core.admission.ticket(self.job)

    @property
    def slice_is_due(self) -> bool:
        """What goes to the engine next, or now, is a slice, and not yet the client's own request."""
        plan = self.request.plan
        return plan is not None and not plan.last

    def dispatched(self, now: float) -> None:
        """What is due goes to the engine."""
        self._sent_at = now
        self._slice_done = self._slice_observed = False
        if self.dispatched_at is None:
            self.dispatched_at = now
            self.settlement = Settlement(self.job.cost)
            if self.request.plan:
                self.request.plan.begin(now)

    # Slices.

    def slice_pays(self, now: float) -> bool:
        """Whether the slice that is due may be expected to help. If not, `requeue` sends what is left in one."""
        return self._core.slice_pays(self.request.model, now)

    def slice_answered(self, answer: Answer, now: float, *, first_attempt: bool = True) -> SliceResult:
        """The slice is prefilled. One that an engine answered which had been away teaches nothing."""
        plan, review = self._sliced
        observation = self._progress.observation(now) if first_attempt else None
        cached = answer.usage.cached if answer.usage else None
        done = FinishedSlice(self._sent_at, now, plan.done, plan.end, plan.slice.cost_s, cached, first=not self.slices)
        self.slices.append(done)
        self._slice_done, self._slice_observed = True, first_attempt
        result = review.judge(plan.end, answer, observation, now, first=done.first)
        self._contended = self._core.speed.is_contended(self.job)
        if review.missed:
            return result
        # Time for which the engine was away is none that the slice took from others.
        seconds = now - self._sent_at if first_attempt else plan.slice.cost_s
        return result._replace(pause_s=plan.pause(seconds, self._core.speed.sequences))

    def slice_failed(self, now: float, *, refused: str = "") -> SliceResult:
        """The slice was not done. `refused` says how the engine refused it; the request itself will meet any other
        fault, too, and tell its client."""
        _, review = self._sliced
        return review.refused(refused, now) if refused else SliceResult()

    def requeue(self, now: float) -> None:
        """Wait for the next slice: others go in between."""
        (plan, review), speed = self._sliced, self._core.speed
        if self._slice_done and not review.missed:
            contended = self._contended or speed.is_contended(self.job)
            following = plan.advance(now, contended=contended, sequences=speed.sequences)
        else:
            following = plan.whole()
        self._apply(SliceDone(self.job, following, observed=self._slice_observed))

    # The answer.

    def scheduled(self) -> None:
        """The engine has scheduled all that it was sent, before the first token: its lane is free for others."""
        self._apply(Scheduled(self.job))

    def first_token(self, now: float) -> None:
        """It was seen to come in the stream."""
        if self.first_token_at is None:
            self.first_token_at = now
            self._apply(FirstToken(self.job, observed=not self.retried))
            self._core.cost_model.insert_prefixes(self.request.prompts, self.request.price)

    def predict_first_token(self, now: float) -> None:
        """Nothing shows when it comes, and it is taken to have come now."""
        if self.first_token_at is None:
            self.first_token_at, self.timing_source = now, "predicted"
            self._apply(FirstToken(self.job, observed=False))

    def answered_whole(self, now: float, *, decodes: bool) -> None:
        """The whole answer is there. One that is not decoded token by token is all prefill."""
        if self.first_token_at is None:
            self.first_token_at, self.timing_source = now, "answer"
            if not decodes:
                self._apply(FirstToken(self.job))

    def chunk(self, count: int) -> None:
        """So many chunks of the answer have come, which are about a token each."""
        self.chunks = self._progress.tokens = count
        if count % PROGRESS_CHUNKS == 0:
            cost_s, kv_tokens = self._core.cost_model.growth(self.request.price, count)
            self._apply(Progressed(self.job, cost_s, max(self.job.kv_tokens, kv_tokens)))

    # The end.

    def settle(self, answer: Answer, now: float) -> Settlement:
        """What it came to. Told before `end`, whether the answer came to its end or not."""
        model, request = self._core.cost_model, self.request
        self._ended_at = now
        observation = self._observation(answer)
        usage = self._own_usage(answer.usage) if answer.usage else None
        if usage is None:
            self.settlement = Settlement(self._partial_charge(now), observation=observation)
            return self.settlement
        counts = model.counts(request.prompts, request.price, usage)
        prompts = len(request.prompts)
        charge, prefill = model.true_cost(counts, prompts), model.true_prefill(counts, prompts)
        self.settlement = Settlement(charge, usage, counts, prefill, observation)
        return self.settlement

    def end(self) -> None:
        """It is over, wherever it was: in the queue, between slices or in the engine."""
        counts = self.settlement.counts
        if self.ticket.begun:
            output_tokens = counts.output // self.job.seats if counts else None
            self._apply(Finished(self.job, self.settlement.charge_s, output_tokens))
        else:
            self._apply(Left(self.job))
        self._ended = True

    def learn(self, answer: Answer) -> LearnResult:
        """From an answer that came to its end. `answer` is what `settle` was told."""
        model, request, usage = self._core.cost_model, self.request, self.settlement.usage
        if usage is None or answer.usage is None:
            return LearnResult()
        observation, last = self.settlement.observation, SliceResult()
        if self.slices:
            # The request itself was the last slice.
            _, review = self._sliced
            if not review.missed:
                last = review.judge(answer.usage.prompt_tokens, answer, observation, self._ended_at, first=False)
            observation = None
        curve = model.learn(request.prompts, request.price, usage, observation, answer.queue_s)
        return LearnResult(curve, last.tripped, last.reuse)

    # How it is worked out.

    def _apply(self, event: Event) -> None:
        """What comes after the end, such as a first token that was predicted for later, changes nothing."""
        if not self._ended:
            self._driver_apply(event)

    @property
    def _sliced(self) -> tuple[SlicePlan, SliceReview]:
        plan = self.request.plan
        assert plan is not None, "a prompt that goes whole has no slices"
        assert self._review is not None
        return plan, self._review

    def _observation(self, answer: Answer) -> PrefillObservation | None:
        """Its prefill, if that can be told from others' work, and from waiting for an engine that was away."""
        # Work of others, straight at the engine, is in no ledger.
        if self.retried or self._core.admission.ledger.correction.external_seats:
            return None
        if self.request.streamed or answer.generation_s is None:
            return self._progress.observation()
        # Nobody saw the first token come; but the engine tells how long before the end that was.
        return self._progress.observation(self._ended_at - answer.generation_s)

    def _own_usage(self, usage: Usage) -> Usage:
        """What the client's request says of itself, with the tokens that were cached before its first slice was sent:
        it found what its slices had done, and that is its own work."""
        if not self.slices or usage.cached is None or self.slices[0].cached is None:
            return usage
        # And with what each slice, and the request, found beyond those before it.
        found = self.slices[0].cached + sum(max(0, (each.cached or 0) - each.start) for each in self.slices[1:])
        found = min(usage.cached, found + max(0, usage.cached - self.slices[-1].end))
        return msgspec.structs.replace(usage, prompt_tokens_details=PromptDetails(found))

    def _partial_charge(self, now: float) -> float:
        """Of a request that ended without counts: its client left, or the engine broke off."""
        done = sum(each.cost_s for each in self.slices)
        since, began = self._progress.dispatched_at, self.first_token_at is not None
        elapsed = 0.0 if since is None else now - since
        left = max(0.0, self.job.cost - done)
        model = self._core.cost_model
        return done + model.partial_cost(left, elapsed=elapsed, began=began, chunks=self.chunks)

"""One request's life, told event by event: what it applies to admission, what it answers, and what it is charged."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.lifecycle.core import Core
from gateway.lifecycle.lifecycle import LearnResult, Lifecycle, PricedRequest
from gateway.lifecycle.settlement import Answer, FinishedSlice
from gateway.lifecycle.slice_review import CacheReuse, SliceResult
from gateway.pricing.cost_model import PROGRESS_CHUNKS, CostModel, Counts
from gateway.pricing.curves import PrefillObservation
from gateway.pricing.profile import Profile
from gateway.pricing.prompt import Prompt, PromptReader
from gateway.pricing.usage import PromptDetails, Usage
from gateway.scheduling.admission import Admission
from gateway.scheduling.events import (
    Arrived,
    Corrected,
    Event,
    Finished,
    FirstToken,
    Left,
    Progressed,
    Scheduled,
    SliceDone,
)
from gateway.scheduling.limits import Limits
from gateway.scheduling.ticket import Phase, Slice
from gateway.slicing.planner import Slicing
from policies.base import Job
from policies.fifo import Fifo

# A thousand tokens of a prompt take a second, and so do a hundred of an answer.
PROFILE = Profile(c_s=0.0, a_s_per_token=1e-3, b_s_per_token2=0.0, decode_s_per_token=1e-2)
# Slices of about a second; beside one that decodes, a tenth of that is left to it after each.
SLICING = Slicing(max_stall=1.0, long_share=0.5)
BLOCK = 100

# Three slices, of 1000, 1000 and 1050 tokens.
LONG = 3050
FIRST, SECOND = 1000, 2000


def said(prompt: int, cached: int | None = None, output: int = 1, *, queue_s: float | None = 0.0) -> Answer:
    """What the engine says of an answer."""
    details = None if cached is None else PromptDetails(cached)
    return Answer(Usage(prompt, output, details), queue_s)


def near(seconds: float) -> Any:
    """What the curve learns on the way moves it a little."""
    return pytest.approx(seconds, rel=0.01)


class Driver:
    """Stands for the gateway: it applies the events to the core, at the time on its own clock, and dispatches jobs.

    notices    whether it tells a request that it was dispatched
    kv_tokens  of cache, which each request reserves
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.core = Core.create(CostModel(PROFILE), Fifo(), limits or Limits(), SLICING)
        self.core.cost_model.prefixes.block = BLOCK
        self.now = 0.0
        self.notices = True
        self.kv_tokens = 0
        self.events: list[Event] = []
        self.lives: dict[Job, Lifecycle] = {}

    @property
    def admission(self) -> Admission:
        return self.core.admission

    @property
    def samples(self) -> int:
        """Prefills that the curve has learned from."""
        return self.core.cost_model.prefill.regression.observations

    @property
    def slowdown(self) -> float:
        return self.core.speed.slowdown["long"].value

    def apply(self, event: Event) -> None:
        self.events.append(event)
        dispatched = self.admission.apply(event)
        self.core.speed.observe(event, dispatched, self.now)
        for job in dispatched if self.notices else ():
            self.lives[job].dispatched(self.now)

    def request(
        self, tokens: int, *, sliced: bool = False, streamed: bool = True, prompts: int = 1, seats: int = 1
    ) -> Lifecycle:
        """Of token ids that no other request has. It has not arrived yet."""
        texts = tuple(prompt(len(self.lives), number, tokens // prompts) for number in range(prompts))
        price = self.core.cost_model.price(texts)
        plan = self.core.plan(price, tokens) if sliced else None
        assert (plan is not None) is sliced
        job = Job("a", self.core.lane(price), price.uncached, price.seconds, self.now, seats, kv_tokens=self.kv_tokens)
        priced = PricedRequest(texts, price, "m", 500, plan, streamed)
        self.lives[job] = life = Lifecycle(self.core, job, priced, self.apply)
        return life

    def arrives(self, tokens: int, *, sliced: bool = False, streamed: bool = True) -> Lifecycle:
        life = self.request(tokens, sliced=sliced, streamed=streamed)
        life.arrived()
        return life

    def decodes(self) -> Lifecycle:
        """Another request, whose first token has come."""
        life = self.arrives(10)
        life.first_token(self.now)
        return life

    def slice_done(self, life: Lifecycle, cached: int | None) -> SliceResult:
        """In the time that it takes to prefill what was not cached; the next one is sent at once."""
        plan = life.request.plan
        assert plan
        assert life.slice_pays(self.now)
        self.now += PROFILE.prefill(plan.end, plan.done if cached is None else cached)
        result = life.slice_answered(said(plan.end, cached), self.now)
        life.requeue(self.now)
        return result

    def of(self, life: Lifecycle) -> list[Event]:
        """The events of one request."""
        return [event for event in self.events if getattr(event, "job", None) is life.job]


def prompt(request: int, number: int, tokens: int) -> Prompt:
    reader = PromptReader([b"%d %d" % (request, number)])
    reader.ids(list(range(tokens)))
    return reader.prompt()


@pytest.fixture
def driver() -> Driver:
    return Driver()


# The whole walk.


def test_a_sliced_prompt_from_arrival_to_learning(driver: Driver) -> None:
    """Beside another that decodes: so each slice is followed by a pause, and slices do not grow."""
    driver.decodes()
    life = driver.arrives(LONG, sliced=True)
    assert (life.dispatched_at, life.slice_is_due, life.ticket.phase) == (0.0, True, Phase.PREFILL)

    for number, (done, end) in enumerate([(0, FIRST), (FIRST, SECOND)], start=1):
        assert life.slice_is_due
        assert life.slice_pays(driver.now)
        driver.now += 1.0
        result = life.slice_answered(said(end, cached=done), driver.now)
        assert result == SliceResult(near(0.1), "", CacheReuse(done, done) if done else None)
        assert len(driver.of(life)) == number  # admission is told after the pause
        driver.now += result.pause_s
        life.requeue(driver.now)
    assert not life.slice_is_due

    driver.now += 1.05
    life.first_token(driver.now)
    for count in range(1, 71):
        life.chunk(count)
    answer = said(LONG, cached=SECOND, output=70)
    driver.now += 5.0
    settlement = life.settle(answer, driver.now)
    life.end()
    assert driver.of(life) == [
        Arrived(life.job, Slice(1000, near(1.0), near(2.05)), max_tokens=500),
        SliceDone(life.job, Slice(1000, near(1.0), near(1.05))),
        SliceDone(life.job, Slice(1050, near(1.05), 0.0)),
        FirstToken(life.job),
        Progressed(life.job, near(3.05 + 0.64), LONG + 2 * PROGRESS_CHUNKS),
        Finished(life.job, near(3.05 + 0.7), output_tokens=70),
    ]
    assert (settlement.counts, settlement.prefill_s) == (Counts(LONG, 0, 70), near(3.05))
    assert life.learn(answer) == LearnResult(curve=False, tripped="", reuse=CacheReuse(SECOND, SECOND))
    assert driver.samples == 3  # each slice is one, and so is the request itself


def test_a_finished_slice_tells_when_it_was_sent_and_done(driver: Driver) -> None:
    driver.decodes()
    life = driver.arrives(LONG, sliced=True)
    driver.now = 1.0
    life.slice_answered(said(FIRST, 0), driver.now)
    driver.now = 1.5
    life.requeue(driver.now)
    life.slice_answered(said(SECOND, FIRST), 2.5)
    assert life.slices == [
        FinishedSlice(0.0, 1.0, 0, FIRST, near(1.0), 0, first=True),
        FinishedSlice(1.5, 2.5, FIRST, SECOND, near(1.0), FIRST),
    ]


def test_an_unsliced_prompt_from_arrival_to_learning(driver: Driver) -> None:
    life = driver.arrives(LONG)
    assert not life.slice_is_due
    driver.now = 3.2
    life.first_token(driver.now)
    answer = said(LONG, cached=0, output=7)
    settlement = life.settle(answer, 4.0)
    life.end()
    assert driver.of(life) == [
        Arrived(life.job, None, 500),
        FirstToken(life.job),
        Finished(life.job, near(3.05 + 0.07), output_tokens=7),
    ]
    assert settlement.prefill_s == near(3.05)
    assert settlement.observation == PrefillObservation(3.2, 0)
    assert (life.first_token_at, life.timing_source) == (3.2, "observed")
    assert life.learn(answer) == LearnResult(curve=True)
    assert driver.samples == 1


def test_the_second_request_waits_until_the_lane_is_scheduled(driver: Driver) -> None:
    """The engine can tell that it has scheduled all that it was sent before the first token comes."""
    first, second = driver.arrives(LONG), driver.arrives(LONG)
    assert second.dispatched_at is None
    driver.now = 1.0
    first.scheduled()
    assert driver.of(first)[-1] == Scheduled(first.job)
    assert second.dispatched_at == 1.0


def test_a_first_token_puts_the_prompt_into_the_prefix_index(driver: Driver) -> None:
    life = driver.arrives(LONG)
    assert driver.core.cost_model.price(life.request.prompts).cached == 0
    life.first_token(3.0)
    assert driver.core.cost_model.price(life.request.prompts).cached == 3000


def test_a_stream_reports_its_growth_every_so_many_chunks(driver: Driver) -> None:
    life = driver.decodes()
    for count in range(1, 2 * PROGRESS_CHUNKS + 2):
        life.chunk(count)
    assert life.chunks == driver.core.speed.progress[life.job].tokens == 2 * PROGRESS_CHUNKS + 1
    one, two = PROGRESS_CHUNKS, 2 * PROGRESS_CHUNKS
    assert [event for event in driver.of(life) if isinstance(event, Progressed)] == [
        Progressed(life.job, near(0.01 + one / 100), 10 + one + PROGRESS_CHUNKS),
        Progressed(life.job, near(0.01 + two / 100), 10 + two + PROGRESS_CHUNKS),
    ]


def test_a_stream_reserves_no_less_cache_as_it_grows(driver: Driver) -> None:
    driver.kv_tokens = 200
    life = driver.decodes()
    for count in range(1, 2 * PROGRESS_CHUNKS + 1):
        life.chunk(count)
    grown = [event.kv_tokens for event in driver.of(life) if isinstance(event, Progressed)]
    assert grown == [200, 10 + 3 * PROGRESS_CHUNKS]


def test_the_answers_length_is_of_each_answer(driver: Driver) -> None:
    life = driver.request(100, prompts=2, seats=4)
    life.arrived()
    life.first_token(1.0)
    settlement = life.settle(said(100, cached=20, output=12), 2.0)
    assert settlement.charge_s == near(0.08 + 0.12)
    life.end()
    assert driver.events[-1] == Finished(life.job, settlement.charge_s, output_tokens=3)


# Slices that do not go well.


def test_after_a_slice_that_misses_the_cache_the_rest_goes_whole(driver: Driver) -> None:
    driver.decodes()
    life = driver.arrives(LONG, sliced=True)
    driver.slice_done(life, cached=0)
    result = driver.slice_done(life, cached=0)
    assert result == SliceResult(pause_s=0.0, tripped="", reuse=CacheReuse(FIRST, 0))
    assert not life.slice_is_due
    assert driver.of(life)[-1] == SliceDone(life.job, Slice(LONG - FIRST, near(2.05), 0.0))
    assert driver.samples == 1  # the first slice
    life.first_token(driver.now)
    answer = said(LONG, cached=0)
    life.settle(answer, driver.now)
    life.end()
    assert life.learn(answer) == LearnResult()
    assert driver.samples == 1


def test_the_second_miss_in_a_row_switches_slicing_off_for_the_model(driver: Driver) -> None:
    for tripped in (False, True):
        life = driver.arrives(LONG, sliced=True)
        driver.decodes().end()  # so that slices do not grow
        driver.slice_done(life, cached=0)
        result = driver.slice_done(life, cached=0)
        assert ("(0 of 1000 tokens); is --enable-prefix-caching on" in result.tripped) is tripped
        assert driver.core.may_slice("m", driver.now) is not tripped
        life.end()
    assert driver.core.may_slice("another", driver.now)


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_where_the_engine_does_not_tell_what_was_cached_the_time_tells_a_miss(driver: Driver, seconds: float) -> None:
    """With the cache the second slice takes a second, and from scratch it takes two."""
    driver.decodes()
    life = driver.arrives(LONG, sliced=True)
    driver.slice_done(life, cached=None)
    assert driver.samples == 0  # nobody knows what the first slice found
    driver.now += seconds
    result = life.slice_answered(said(SECOND, None), driver.now)
    assert result == SliceResult(pause_s=near(0.1) if seconds == 1.0 else 0.0, reuse=None)
    assert driver.samples == (seconds == 1.0)
    life.requeue(driver.now)
    assert life.ticket.slice.tokens == (LONG - SECOND if seconds == 1.0 else LONG - FIRST)


@pytest.mark.parametrize("why", ["a prefill of somebody else took its time", "the engine was away"])
def test_where_nothing_tells_whether_a_slice_missed_slicing_goes_on(driver: Driver, why: str) -> None:
    driver.decodes()
    life = driver.arrives(LONG, sliced=True)
    driver.slice_done(life, cached=None)
    if why == "a prefill of somebody else took its time":
        driver.decodes()
    driver.now += 2.0
    result = life.slice_answered(said(SECOND, None), driver.now, first_attempt=why != "the engine was away")
    assert result.tripped == ""
    assert result.pause_s > 0
    life.requeue(driver.now)
    assert life.ticket.slice.tokens == LONG - SECOND


@pytest.mark.parametrize(
    ("cached", "reuse"), [(950, CacheReuse(FIRST, 950)), (1400, CacheReuse(FIRST, FIRST)), (None, None)]
)
def test_a_slice_reports_how_much_of_the_work_before_it_was_found(
    driver: Driver, cached: int | None, reuse: CacheReuse | None
) -> None:
    driver.decodes()
    life = driver.arrives(LONG, sliced=True)
    assert driver.slice_done(life, cached=0).reuse is None
    assert driver.slice_done(life, cached).reuse == reuse


def test_what_slices_expect_to_find_is_compared_with_the_engines_own_count(driver: Driver) -> None:
    """Of an engine that does not tell it with each answer, and finds nothing."""
    prefixes = driver.core.cost_model.prefixes
    prefixes.compare_hits(0.0)
    driver.decodes()
    for _ in range(2):
        life = driver.arrives(LONG, sliced=True)
        driver.slice_done(life, cached=None)
        driver.slice_done(life, cached=None)
        life.first_token(driver.now)
        life.settle(said(LONG), driver.now)
        life.end()
        life.learn(said(LONG))
    assert prefixes.trust.value == 1.0
    prefixes.compare_hits(0.0)
    assert prefixes.trust.value < 0.5


def test_the_request_itself_may_be_the_slice_that_misses(driver: Driver) -> None:
    for tripped in (False, True):
        life = driver.arrives(2050, sliced=True)
        driver.slice_done(life, cached=0)
        assert not life.slice_is_due
        life.first_token(driver.now)
        answer = said(2050, cached=0)
        life.settle(answer, driver.now)
        life.end()
        learned = life.learn(answer)
        assert learned.reuse == CacheReuse(FIRST, 0)
        assert bool(learned.tripped) is tripped
        assert driver.core.may_slice("m", driver.now) is not tripped


def test_after_a_slice_that_the_engine_refuses_the_prompt_goes_whole(driver: Driver) -> None:
    """The second refusal trips the circuit breaker."""
    for reason in ("", "the engine refuses slices (HTTP 404)"):
        life = driver.arrives(LONG, sliced=True)
        assert life.slice_pays(driver.now)
        driver.now += 0.1
        assert life.slice_failed(driver.now, refused="HTTP 404") == SliceResult(tripped=reason)
        life.requeue(driver.now)
        whole = SliceDone(life.job, Slice(LONG, near(3.05), 0.0), observed=False)
        assert driver.of(life)[-1] == whole
        assert (life.slice_is_due, life.slices, life.ticket.phase) == (False, [], Phase.PREFILL)
        assert driver.core.may_slice("m", driver.now) is not bool(reason)
        life.end()
    assert (driver.samples, driver.slowdown) == (0, 1.0)


def test_a_slice_that_failed_for_another_reason_is_no_miss(driver: Driver) -> None:
    for _ in range(3):
        life = driver.arrives(LONG, sliced=True)
        assert life.slice_pays(driver.now)
        assert life.slice_failed(driver.now) == SliceResult()
        life.requeue(driver.now)
        assert not life.slice_is_due
        life.end()
    assert driver.core.may_slice("m", driver.now)


def test_a_slice_that_does_not_pay_is_not_sent(driver: Driver) -> None:
    """The engine turns out to have no prefix cache, after the first slice."""
    driver.decodes()
    life = driver.arrives(LONG, sliced=True)
    driver.slice_done(life, cached=0)
    driver.core.cost_model.prefixes.enabled = False
    assert not life.slice_pays(driver.now)
    life.requeue(driver.now)
    whole = SliceDone(life.job, Slice(LONG - FIRST, near(2.05), 0.0), observed=False)
    assert driver.of(life)[-1] == whole
    assert not life.slice_is_due


def test_a_retried_slice_does_not_slow_the_engine_down(driver: Driver) -> None:
    """It took 9 s, and the engine was away for 8 of them."""
    driver.decodes()
    life = driver.arrives(LONG, sliced=True)
    assert life.slice_pays(driver.now)
    driver.now += 9.0
    assert life.slice_answered(said(FIRST, 0), driver.now, first_attempt=False).pause_s == near(0.1)
    life.requeue(driver.now)
    assert driver.events[-1] == SliceDone(life.job, life.ticket.slice, observed=False)
    assert driver.slowdown == 1.0


def test_a_slice_that_fails_after_one_that_was_done_is_not_taken_to_be_done(driver: Driver) -> None:
    life = driver.arrives(LONG, sliced=True)
    life.slice_answered(said(FIRST, 0), driver.now + 1.0)
    life.requeue(driver.now + 1.0)
    life.slice_failed(driver.now + 2.0)
    life.requeue(driver.now + 2.0)
    assert isinstance(driver.events[-1], SliceDone)
    assert not driver.events[-1].observed
    assert not life.slice_is_due


def test_the_curve_learns_nothing_from_a_slice_that_was_retried(driver: Driver) -> None:
    life = driver.arrives(LONG, sliced=True)
    driver.now = 9.0
    life.slice_answered(said(FIRST, 0), driver.now, first_attempt=False)
    assert driver.samples == 0
    assert len(life.slices) == 1


@pytest.mark.parametrize("here", ["never", "during the slice", "during the pause", "until the pause"])
def test_a_slice_grows_only_if_nobody_else_was_here_before_it(driver: Driver, here: str) -> None:
    def visit(when: str) -> None:
        if when == here:
            driver.decodes().end()

    other = driver.decodes() if here == "until the pause" else None
    life = driver.arrives(LONG, sliced=True)
    driver.now = 0.5
    visit("during the slice")
    driver.now = 1.0
    life.slice_answered(said(FIRST, 0), driver.now)
    if other:
        other.end()
    visit("during the pause")
    life.requeue(driver.now)
    assert life.ticket.slice.tokens == (LONG - FIRST if here == "never" else SECOND - FIRST)


# The first token.


def test_nothing_is_observed_of_a_retried_request(driver: Driver) -> None:
    """Its first token came late for a reason that says nothing of the engine."""
    life = driver.arrives(LONG)
    life.retried = True
    driver.now = 30.0
    life.first_token(driver.now)
    assert driver.of(life)[-1] == FirstToken(life.job, observed=False)
    answer = said(LONG, cached=0)
    settlement = life.settle(answer, 31.0)
    life.end()
    assert settlement.observation is None
    assert life.learn(answer) == LearnResult()
    assert (driver.samples, driver.slowdown) == (0, 1.0)


def test_nothing_is_observed_of_a_retried_answer_that_is_not_streamed(driver: Driver) -> None:
    """Though the engine tells how long it generated."""
    life = driver.arrives(LONG, streamed=False)
    life.retried = True
    assert life.settle(said(LONG, cached=0)._replace(generation_s=2.0), 30.0).observation is None


def test_nothing_is_observed_while_others_use_the_engine_past_the_gateway(driver: Driver) -> None:
    life = driver.arrives(LONG)
    life.first_token(3.0)
    driver.apply(Corrected(external_seats=1))
    assert life.settle(said(LONG, cached=0), 4.0).observation is None


def test_the_first_token_of_an_answer_that_is_not_streamed_is_predicted(driver: Driver) -> None:
    life = driver.arrives(LONG, streamed=False)
    life.predict_first_token(3.0)
    assert driver.of(life)[-1] == FirstToken(life.job, observed=False)
    assert (life.first_token_at, life.timing_source) == (3.0, "predicted")
    life.answered_whole(5.0, decodes=True)
    life.predict_first_token(6.0)
    assert (life.first_token_at, life.timing_source) == (3.0, "predicted")
    assert len(driver.of(life)) == 2
    assert life.settle(said(LONG, cached=0), 5.0).observation is None
    assert driver.slowdown == 1.0


@pytest.mark.parametrize("decodes", [True, False])
def test_an_answer_that_comes_before_its_predicted_first_token_has_it_at_its_end(driver: Driver, decodes: bool) -> None:
    """An answer that is not decoded, such as an embedding, is all prefill, which was observed then."""
    life = driver.arrives(LONG, streamed=False)
    driver.now = 2.0
    life.answered_whole(driver.now, decodes=decodes)
    assert (life.first_token_at, life.timing_source) == (2.0, "answer")
    life.predict_first_token(3.0)
    assert driver.of(life)[1:] == ([] if decodes else [FirstToken(life.job)])
    observed = None if decodes else PrefillObservation(2.0, 0)
    assert life.settle(said(LONG, cached=0), 2.0).observation == observed


@pytest.mark.parametrize(("streamed", "prefill_s"), [(True, 3.2), (False, 3.5)])
def test_an_unstreamed_prefill_is_observed_where_the_engine_tells_how_long_it_generated(
    driver: Driver, streamed: bool, prefill_s: float
) -> None:
    """Of a stream, the first token that was seen says it better."""
    life = driver.arrives(LONG, streamed=streamed)
    driver.now = 3.2
    if streamed:
        life.first_token(driver.now)
    answer = said(LONG, cached=0)._replace(generation_s=2.0)
    assert life.settle(answer, 5.5).observation == PrefillObservation(prefill_s, 0)
    life.end()
    assert life.learn(answer).curve


# What it is charged.


Told = Callable[[Lifecycle], object]


@pytest.mark.parametrize(
    ("told", "now", "charged"),
    [
        (lambda life: None, 0.4, 0.4),
        (lambda life: None, 60.0, 3.05),
        (lambda life: life.first_token(3.0), 3.0, 3.05),
        (lambda life: (life.first_token(3.0), life.chunk(20)), 60.0, 3.05 + 0.2),
    ],
    ids=["nothing came yet", "nothing came for long", "a first token", "some of the answer"],
)
def test_without_usage_a_request_is_charged_by_how_far_it_came(
    driver: Driver, told: Told, now: float, charged: float
) -> None:
    """Before the first token at most the elapsed time, and after it what was predicted, with the chunks that came."""
    life = driver.arrives(LONG)
    told(life)
    settlement = life.settle(Answer(), now)
    assert settlement.charge_s == near(charged)
    assert (settlement.usage, settlement.counts, settlement.prefill_s) == (None, None, None)
    life.end()
    assert driver.of(life)[-1] == Finished(life.job, settlement.charge_s, output_tokens=None)
    assert life.learn(Answer()) == LearnResult()


@pytest.mark.parametrize(("elapsed", "charged"), [(0.3, 1.3), (60.0, 3.05)])
def test_without_usage_the_slices_that_are_done_are_charged_and_the_time_since(
    driver: Driver, elapsed: float, charged: float
) -> None:
    life = driver.arrives(LONG, sliced=True)
    driver.slice_done(life, cached=0)
    assert life.settle(Answer(), driver.now + elapsed).charge_s == near(charged)


def test_a_request_that_ends_between_slices_is_charged_those_that_are_done() -> None:
    driver = Driver(Limits(long_prompt_tokens=100))
    life = driver.arrives(LONG, sliced=True)
    shorter = driver.arrives(400)
    driver.slice_done(life, cached=0)
    assert (life.ticket.phase, shorter.ticket.phase) == (Phase.REQUEUED, Phase.PREFILL)
    life.settle(Answer(), driver.now + 60.0)
    life.end()
    assert driver.of(life)[-1] == Finished(life.job, near(1.0))


def test_before_it_is_settled_a_request_has_its_predicted_charge(driver: Driver) -> None:
    life = driver.request(LONG)
    assert life.settlement.charge_s == 0.0
    life.arrived()
    assert life.settlement.charge_s == life.job.cost
    life.end()
    assert driver.of(life)[-1] == Finished(life.job, life.job.cost)


def test_a_request_that_leaves_the_queue_is_charged_nothing(driver: Driver) -> None:
    driver.arrives(LONG)
    life = driver.arrives(LONG)
    life.end()
    assert driver.of(life)[1:] == [Left(life.job)]
    assert (life.settlement.charge_s, life.dispatched_at) == (0.0, None)
    with pytest.raises(KeyError):
        _ = life.ticket


def test_a_request_that_ends_before_it_has_noticed_its_dispatch_is_charged_nothing(driver: Driver) -> None:
    """As one whose client leaves at that moment: nothing was sent to the engine, but its permit comes back."""
    driver.notices = False
    life = driver.arrives(LONG)
    assert driver.admission.running == 1
    life.end()
    assert driver.of(life)[1:] == [Finished(life.job, 0.0)]
    assert driver.admission.running == 0


def test_what_comes_after_the_end_changes_nothing(driver: Driver) -> None:
    """Such as the first token that was predicted for later."""
    life = driver.arrives(LONG, streamed=False)
    life.settle(Answer(), 1.0)
    life.end()
    events, held = driver.events.copy(), driver.admission.held()
    life.scheduled()
    life.predict_first_token(3.0)
    life.first_token(3.0)
    life.answered_whole(4.0, decodes=False)
    life.chunk(PROGRESS_CHUNKS)
    assert driver.events == events
    assert driver.admission.held() == held == {"seats": 0, "kv": 0, "short": 0, "long": 0}
    assert not driver.core.speed.progress


@pytest.mark.parametrize(
    ("slices", "request_cached", "own"),
    [
        ((0, FIRST), SECOND, 0),
        ((500, FIRST), SECOND, 500),
        ((FIRST, SECOND), LONG - 50, LONG - 50),
        ((0, 1400), SECOND, 400),
        ((0, FIRST), SECOND + 300, 300),
        ((500, FIRST), 300, 300),
        ((0, FIRST), None, None),
        ((None, None), SECOND, SECOND),
    ],
    ids=[
        "only its own slices",
        "a beginning that was there",
        "all of it was there",
        "a slice found more than the one before had done",
        "the request found more than its slices had done",
        "the request found less than was there",
        "not told of the request",
        "not told of the slices",
    ],
)
def test_the_work_of_its_own_slices_is_not_counted_as_cached(
    driver: Driver, slices: tuple[int | None, int | None], request_cached: int | None, own: int | None
) -> None:
    driver.decodes()
    life = driver.arrives(LONG, sliced=True)
    for cached in slices:
        driver.slice_done(life, cached)
    assert not life.slice_is_due
    life.first_token(driver.now)
    settlement = life.settle(said(LONG, request_cached, output=3), driver.now)
    assert settlement.usage
    assert (settlement.usage.cached, settlement.usage.prompt_tokens, settlement.usage.output_tokens) == (own, LONG, 3)
    assert settlement.counts == Counts(LONG, own or 0, 3)
    assert settlement.prefill_s == near((LONG - (own or 0)) / 1000)

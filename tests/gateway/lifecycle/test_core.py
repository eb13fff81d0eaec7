"""What decides, as the gateway and the simulator hold it: what is counted, what is sliced, and when a slice pays."""

import pytest

from gateway.lifecycle.core import COUNTED_FROM, MAX_CACHE_USE, Core
from gateway.pricing.cost_model import CostModel, Price
from gateway.pricing.curves import PrefillSample
from gateway.pricing.profile import Profile
from gateway.scheduling.events import Corrected
from gateway.scheduling.limits import Limits
from gateway.slicing.circuit_breaker import MAX_MISSES, OFF_S
from gateway.slicing.planner import Slicing
from policies.base import Job
from policies.fifo import Fifo

# A thousand tokens take a second.
PROFILE = Profile(c_s=0.0, a_s_per_token=1e-3, b_s_per_token2=0.0, decode_s_per_token=1e-2)
LONG = 2000  # tokens; longer prompts take the long lane
SLICING = Slicing(max_stall=1.0)


def core(slicing: Slicing = SLICING) -> Core:
    made = Core.create(CostModel(PROFILE), Fifo(), Limits(long_prompt_tokens=LONG), slicing)
    made.cost_model.prefixes.block = 100
    return made


def price(tokens: int, cached: int = 0) -> Price:
    return Price(tokens, cached, PROFILE.prefill(tokens, cached))


# Lanes and counts.


@pytest.mark.parametrize(
    ("tokens", "cached", "lane"), [(LONG, 0, "short"), (LONG + 1, 0, "long"), (LONG + 500, 500, "short")]
)
def test_the_lane_depends_on_the_tokens_that_are_not_cached(tokens: int, cached: int, lane: str) -> None:
    assert core().lane(price(tokens, cached)) == lane


@pytest.mark.parametrize(
    ("tokens", "cached", "counted"),
    [(COUNTED_FROM * LONG - 1, 0, False), (COUNTED_FROM * LONG, 0, True), (9000, 9000 - COUNTED_FROM * LONG, True)],
)
def test_prompts_that_might_be_long_are_counted(tokens: float, cached: float, counted: bool) -> None:
    made = core()
    assert made.needs_count(price(int(tokens), int(cached))) is counted
    assert made.nearly_long(price(int(tokens), int(cached))) is counted


@pytest.mark.parametrize(("tokens", "counted"), [(7499, False), (7500, True), (12_000, True)])
def test_prompts_that_might_not_fit_are_counted_though_they_are_cached(tokens: int, counted: bool) -> None:
    made = core()
    almost_cached = price(tokens, tokens - 1)
    assert not made.needs_count(almost_cached)
    made.max_model_len = 10_000
    assert made.needs_count(almost_cached) is counted
    assert not made.nearly_long(almost_cached)


def test_a_request_is_expected_to_fill_the_cache_with_its_prompts_and_most_answers() -> None:
    made = core()
    for tokens in range(1, 101):
        made.speed.answers.observe(tokens)
    assert made.kv_tokens(price(500), 1, None) == 500 + 91  # nine of ten are no longer
    assert made.kv_tokens(price(500), 3, None) == 500 + 3 * 91
    assert made.kv_tokens(price(500), 3, 20) == 500 + 3 * 20


# Plans.


def test_a_long_prompt_is_planned_from_the_block_where_its_cached_beginning_ends() -> None:
    plan = core().plan(price(9050, 250), 9050)
    assert plan
    assert (plan.tokens, plan.found, plan.done, plan.last) == (9050, 200, 200, False)


@pytest.mark.parametrize("tokens", [100, LONG])
def test_a_short_prompt_is_not_sliced(tokens: int) -> None:
    """Though it would take longer than a slice may."""
    made = core(Slicing(max_stall=0.05))
    assert made.plan(price(tokens), tokens) is None


def test_a_prompt_that_fits_into_one_slice_is_not_sliced() -> None:
    assert core(Slicing(max_stall=60.0)).plan(price(9000), 9000) is None


def test_slicing_can_be_switched_off_and_on() -> None:
    """A prompt that is being sliced goes on as it began."""
    made = core()
    plan = made.plan(price(9000), 9000)
    assert plan
    made.set_slicing(None)
    assert made.plan(price(9000), 9000) is None
    assert not made.may_slice("m", 0.0)
    before = plan.end
    plan.begin(0.0)
    plan.advance(1.0, contended=True)
    assert plan.done == before < plan.end < 9000
    made.set_slicing(Slicing(max_stall=2.0))
    assert made.may_slice("m", 0.0)
    assert made.plan(price(9000), 9000)


# Whether a slice pays.


def test_slices_pay_until_the_engine_says_that_it_has_no_prefix_cache() -> None:
    made = core()
    assert made.may_slice("m", 0.0)
    assert made.slice_pays("m", 0.0)
    made.cost_model.prefixes.enabled = False
    assert not made.may_slice("m", 0.0)
    assert not made.slice_pays("m", 0.0)


def test_slices_do_not_pay_while_the_circuit_breaker_is_open_for_the_model() -> None:
    made = core()
    for _ in range(MAX_MISSES):
        made.circuit_breaker.observe("m", hit=False, now=100.0)
    for asked in (made.may_slice, made.slice_pays):
        assert not asked("m", 100.0 + OFF_S - 1)
        assert asked("m", 100.0 + OFF_S)
        assert asked("another", 100.0)


def test_slices_do_not_pay_where_the_cache_is_nearly_full() -> None:
    """Then a prompt's own beginning might be evicted between two slices. That may change, so prompts are planned."""
    made = core()
    made.admission.arrive(Job("a", "long", 3000, 3.0, 0.0, kv_tokens=9000))
    assert made.slice_pays("m", 0.0)  # nobody has said how large the cache is
    made.cost_model.prefixes.capacity = int(9000 / MAX_CACHE_USE)
    assert made.slice_pays("m", 0.0)
    made.cost_model.prefixes.capacity -= 1
    assert not made.slice_pays("m", 0.0)
    assert made.may_slice("m", 0.0)


def test_what_others_use_of_the_cache_counts_and_what_is_not_in_use_does_not() -> None:
    made = core()
    made.admission.arrive(Job("a", "long", 3000, 3.0, 0.0, kv_tokens=9000))
    made.cost_model.prefixes.capacity = 9000
    assert not made.slice_pays("m", 0.0)
    made.admission.correct(Corrected(kv_scale=0.5))
    assert made.slice_pays("m", 0.0)
    made.admission.correct(Corrected(kv_scale=0.5, external_seats=1, external_kv_tokens=4000))
    assert not made.slice_pays("m", 0.0)


# What it is made of.


def test_the_speed_prices_by_the_curves_as_they_are_learned() -> None:
    made = core()
    assert made.speed.prefill_cost(1000) == pytest.approx(1.0)
    for _ in range(20):
        made.cost_model.prefill.observe(PrefillSample(1000, 0, 2.0, 0.0, 0))
    assert made.speed.prefill_cost(1000) == made.cost_model.profile.prefill(1000) == pytest.approx(2.0, rel=0.1)
    assert made.speed.decode_cost(100) == made.cost_model.profile.decode(100)
    assert made.speed.step is made.cost_model.step


@pytest.mark.parametrize("shares_steps", [True, False])
def test_the_speed_knows_whether_the_engine_cuts_long_prompts_itself(shares_steps: bool) -> None:
    made = Core.create(CostModel(PROFILE), Fifo(), Limits(), shares_steps=shares_steps)
    assert made.speed.shares_steps is shares_steps
    assert made.slicer is None

"""Cache and external load: what is counted, and which jobs fit."""

from collections.abc import Callable
from itertools import count

import pytest

from gateway.scheduling.admission import Admission
from gateway.scheduling.events import Corrected
from gateway.scheduling.limits import Limits
from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy

NewPolicy = Callable[[], Policy]
pytestmark = pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)

arrivals = count()


def job(kv_tokens: int, lane: Lane = "short", seats: int = 1) -> Job:
    return Job("a", lane, 10, 1.0, next(arrivals), seats, kv_tokens=kv_tokens)


def with_cache(new_policy: NewPolicy, kv_tokens: int | None = 100, max_num_seqs: int = 256) -> Admission:
    return Admission(new_policy(), Limits(kv_tokens=kv_tokens, max_num_seqs=max_num_seqs, long_lane_jobs=8))


# Cache.


def test_cache_is_reserved_from_dispatch_to_the_end(new_policy: NewPolicy) -> None:
    admission = with_cache(new_policy)
    first, second, third = job(60), job(40), job(1)
    assert admission.arrive(first) == [first]
    assert admission.arrive(second) == [second]
    assert admission.held()["kv"] == 100
    assert admission.arrive(third) == []
    assert admission.first_token(first) == []
    assert admission.first_token(second) == []
    assert admission.finish(first, 1.0) == [third]
    assert admission.held()["kv"] == 41


def test_without_a_cache_limit_reservations_are_counted_and_block_nothing(new_policy: NewPolicy) -> None:
    admission = with_cache(new_policy, kv_tokens=None)
    first, second = job(10**9), job(10**9)
    assert [admission.arrive(first), admission.arrive(second)] == [[first], [second]]
    assert admission.ledger.kv_tokens == 2 * 10**9


def test_a_job_larger_than_the_cache_runs_alone(new_policy: NewPolicy) -> None:
    admission = with_cache(new_policy)
    before, large, after = job(1), job(150), job(1)
    admission.arrive(before)
    assert admission.arrive(large) == []
    assert admission.arrive(after) == []
    assert admission.finish(before, 1.0) == [large]
    assert admission.first_token(large) == []
    assert admission.finish(large, 1.0) == [after]


def test_a_job_that_left_the_queue_held_no_cache(new_policy: NewPolicy) -> None:
    admission = with_cache(new_policy)
    admission.arrive(job(100))
    waiting = job(50)
    admission.arrive(waiting)
    assert admission.leave(waiting) == []
    assert admission.ledger.kv_tokens == 100


def test_cache_growth_blocks_dispatch_until_there_is_room_again(new_policy: NewPolicy) -> None:
    admission = with_cache(new_policy)
    growing, other, waiting = job(50), job(20), job(20)
    admission.arrive(growing)
    admission.arrive(other)
    assert admission.progress(growing, 1.0, 130) == []
    assert admission.ledger.kv_tokens == 150
    assert admission.arrive(waiting) == []
    assert admission.finish(other, 1.0) == []
    assert admission.finish(growing, 1.0) == [waiting]
    assert admission.ledger.kv_tokens == 20


def test_a_job_that_needs_less_than_reserved_admits_the_next(new_policy: NewPolicy) -> None:
    admission = with_cache(new_policy)
    shrinking, waiting = job(90), job(50)
    admission.arrive(shrinking)
    admission.arrive(waiting)
    assert admission.progress(shrinking, 1.0, 51) == []
    assert admission.progress(shrinking, 1.0, 50) == [waiting]


@pytest.mark.parametrize("flood", LANES)
def test_a_head_that_needs_all_the_cache_waits_only_for_running_jobs(new_policy: NewPolicy, flood: Lane) -> None:
    admission = with_cache(new_policy, kv_tokens=800)
    inside = [job(100, flood) for _ in range(8)]
    for each in inside:
        admission.arrive(each)
    head = job(800, "long" if flood == "short" else "short")
    assert admission.arrive(head) == []
    dispatched: list[Job] = []
    for each in inside:
        assert dispatched == []
        assert admission.arrive(job(100, flood)) == []
        dispatched = admission.finish(each, 1.0)
    assert dispatched == [head]


# All together or not at all.


def test_a_job_that_lacks_one_budget_takes_none_of_the_other(new_policy: NewPolicy) -> None:
    admission = with_cache(new_policy, max_num_seqs=3)
    wide, full = job(1, seats=2), job(99)
    admission.arrive(wide)
    admission.arrive(full)
    no_cache = job(50)
    assert admission.finish(wide, 1.0) == []
    assert admission.arrive(no_cache) == []
    assert (admission.seats, admission.ledger.kv_tokens) == (1, 99)
    assert admission.finish(full, 1.0) == [no_cache]


# What the engine says.


@pytest.mark.parametrize(("scale", "fits"), [(0.5, True), (0.51, False), (1.0, False), (2.0, False)])
def test_reservations_are_scaled_by_the_engines_reported_use(new_policy: NewPolicy, scale: float, fits: bool) -> None:
    admission, waiting = with_cache(new_policy), job(100)
    admission.arrive(job(100))
    assert admission.arrive(waiting) == []
    assert admission.correct(Corrected(kv_scale=scale)) == [waiting] * fits


def test_external_cache_use_is_counted_and_released(new_policy: NewPolicy) -> None:
    admission = with_cache(new_policy)
    waiting = job(30)
    admission.arrive(job(50))
    assert admission.correct(Corrected(external_kv_tokens=21)) == []
    assert admission.arrive(waiting) == []
    assert admission.correct(Corrected(external_kv_tokens=20)) == [waiting]


def test_external_seats_are_counted_and_released(new_policy: NewPolicy) -> None:
    admission = with_cache(new_policy, max_num_seqs=4)
    waiting = job(0, seats=2)
    admission.arrive(job(0))
    assert admission.correct(Corrected(external_seats=2)) == []
    assert admission.arrive(waiting) == []
    assert admission.correct(Corrected(external_seats=1)) == [waiting]
    assert admission.seats == 3


def test_a_job_is_still_dispatched_to_an_engine_that_others_keep_full(new_policy: NewPolicy) -> None:
    """One of ours is always in it, whatever the metrics say; and what they no longer say no longer counts."""
    admission = with_cache(new_policy, max_num_seqs=4)
    admission.correct(Corrected(kv_scale=1000.0, external_seats=1000, external_kv_tokens=10**9))
    jobs = [job(10) for _ in range(5)]
    running = [dispatched for each in jobs for dispatched in admission.arrive(each)]
    for turn in range(3):
        assert running == [jobs[turn]]
        running = admission.finish(running[0], 1.0)
    assert admission.correct(Corrected()) == jobs[4:]


def test_external_load_takes_nothing_from_running_jobs(new_policy: NewPolicy) -> None:
    admission, running = with_cache(new_policy), job(50)
    admission.arrive(running)
    assert admission.correct(Corrected(external_seats=1000, external_kv_tokens=10**9)) == []
    assert admission.first_token(running) == admission.progress(running, 1.0, 60) == []
    assert admission.held() == {"seats": 1, "kv": 60, "short": 0, "long": 0}

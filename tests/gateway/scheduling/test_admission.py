"""Each rule of `gateway.scheduling.admission` in a small scene, for every policy.

In the scenes all jobs belong to one flow and arrive one after the other, so every policy dispatches them in that
order. `test_admission_histories.py` mixes the rules at random.
"""

from collections.abc import Callable
from itertools import count

import pytest

from gateway.scheduling.admission import Admission
from gateway.scheduling.limits import Limits
from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy

NewPolicy = Callable[[], Policy]
pytestmark = pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)

arrivals = count()


def short(tokens: int = 10, seats: int = 1, cost: float = 1.0) -> Job:
    return Job("a", "short", tokens, cost, next(arrivals), seats)


def long(tokens: int = 5000, seats: int = 1, cost: float = 1.0) -> Job:
    return Job("a", "long", tokens, cost, next(arrivals), seats)


# The prefill lanes.


def test_a_job_that_fits_is_dispatched_at_once(new_policy: NewPolicy) -> None:
    admission, job = Admission(new_policy()), short()
    assert admission.arrive(job) == [job]
    assert (admission.seats, admission.running, admission.waiting("short")) == (1, 1, 0)
    assert (admission.prefill_jobs("short"), admission.prefill_tokens("short")) == (1, 10)
    assert admission.held() == {"seats": 1, "kv": 0, "short": 10, "long": 0}


def test_each_budget_is_released_at_its_own_event(new_policy: NewPolicy) -> None:
    admission, job = Admission(new_policy()), short(seats=3)
    admission.arrive(job)
    admission.first_token(job)
    assert (admission.prefill_jobs("short"), admission.prefill_tokens("short")) == (0, 0)
    assert admission.seats == 3
    admission.finish(job, 1.0)
    assert (admission.seats, admission.running) == (0, 0)


def test_a_job_that_ends_before_its_first_token_releases_everything_at_once(new_policy: NewPolicy) -> None:
    admission, job = Admission(new_policy()), long()
    admission.arrive(job)
    admission.finish(job, 0.0)
    assert (admission.prefill_jobs("long"), admission.prefill_tokens("long"), admission.seats) == (0, 0, 0)


def test_short_jobs_prefill_together_up_to_the_lanes_tokens(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(short_lane_tokens=100))
    first, second, third = short(60), short(40), short(1)
    assert admission.arrive(first) == [first]
    assert admission.arrive(second) == [second]
    assert admission.arrive(third) == []
    assert admission.first_token(second) == [third]


def test_no_job_passes_the_head_of_its_lane(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(short_lane_tokens=100))
    first, head, small = short(60), short(50), short(10)
    admission.arrive(first)
    assert admission.arrive(head) == []
    assert admission.arrive(small) == []  # it would fit
    assert admission.first_token(first) == [head, small]


def test_a_job_larger_than_the_short_lane_runs_alone(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(short_lane_tokens=100))
    before, large, after = short(1), short(150), short(1)
    admission.arrive(before)
    assert admission.arrive(large) == []
    assert admission.arrive(after) == []
    assert admission.first_token(before) == [large]
    assert admission.first_token(large) == [after]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_number_of_concurrent_long_prefills_is_limited(new_policy: NewPolicy, jobs: int) -> None:
    admission = Admission(new_policy(), Limits(long_lane_jobs=jobs))
    running = [long() for _ in range(jobs)]
    assert [admission.arrive(job) for job in running] == [[job] for job in running]
    waiting = long()
    assert admission.arrive(waiting) == []
    assert admission.first_token(running[0]) == [waiting]


def test_a_full_lane_does_not_block_the_other_lane(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(short_lane_tokens=100))
    admission.arrive(long())
    admission.arrive(long())
    beside = short(100)
    assert admission.arrive(beside) == [beside]
    assert admission.arrive(short(1)) == []
    assert (admission.waiting("long"), admission.waiting("short")) == (1, 1)


# Seats, which both lanes share.


def test_seats_are_held_to_the_end(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=2))
    first, second, third = short(), long(), short()
    admission.arrive(first)
    admission.arrive(second)
    assert admission.arrive(third) == []
    assert admission.first_token(first) == []
    assert admission.finish(second, 1.0) == [third]


def test_a_job_larger_than_all_seats_runs_alone(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=2))
    before, large, after = short(), short(seats=3), short()
    admission.arrive(before)
    admission.first_token(before)
    assert admission.arrive(large) == []
    assert admission.arrive(after) == []
    assert admission.finish(before, 1.0) == [large]
    assert admission.first_token(large) == []
    assert admission.finish(large, 1.0) == [after]


def test_a_head_that_lacks_only_seats_reserves_the_free_ones(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=4))
    one, two, head, small = short(), short(seats=2), long(seats=2), short()
    admission.arrive(one)
    admission.arrive(two)
    assert admission.arrive(head) == []
    assert admission.arrive(small) == []  # a seat is free, and it is the head's
    assert admission.finish(one, 1.0) == [head]
    assert admission.finish(two, 1.0) == [small]


def test_a_reservation_is_released_when_the_head_leaves(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=4))
    head, small = long(seats=2), short()
    admission.arrive(short(seats=3))
    admission.arrive(head)
    admission.arrive(small)
    assert admission.leave(head) == [small]


def test_a_head_with_a_full_lane_reserves_no_seats_but_has_the_first_claim_later(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=3))
    busy, head = long(), long(seats=2)
    admission.arrive(busy)
    admission.arrive(head)
    shorts = [short() for _ in range(3)]
    assert [admission.arrive(job) for job in shorts] == [[shorts[0]], [shorts[1]], []]
    assert admission.first_token(busy) == []  # the lane has room again, there are no seats
    assert admission.finish(shorts[0], 1.0) == []  # one is free: for the head, which needs two
    assert admission.finish(shorts[1], 1.0) == [head]


@pytest.mark.parametrize("flood", LANES)
def test_the_lanes_alternate_when_seats_are_scarce(new_policy: NewPolicy, flood: Lane) -> None:
    """One seat, and a flood in one lane: whoever comes to the other waits for at most one more of it."""
    admission = Admission(new_policy(), Limits(max_num_seqs=1))
    flooding, lone = (short, long) if flood == "short" else (long, short)
    running = flooding()
    admission.arrive(running)
    for _ in range(20):
        admission.arrive(flooding())
    served = ""
    for turn in range(12):
        if turn % 3 == 0:
            admission.arrive(lone())
        (running,) = admission.finish(running, 1.0)
        served += "." if running.lane == flood else "!"
    assert served in {"!..!..!..!..", ".!..!..!..!."}


@pytest.mark.parametrize("flood", LANES)
def test_a_head_that_needs_every_seat_waits_only_for_running_jobs(new_policy: NewPolicy, flood: Lane) -> None:
    """However many come: when all who were in the engine have ended, it goes. Were it passed, it never would."""
    admission = Admission(new_policy(), Limits(max_num_seqs=8, long_lane_jobs=8))
    flooding, wide = (short, long) if flood == "short" else (long, short)
    inside = [flooding() for _ in range(8)]
    for job in inside:
        admission.arrive(job)
    head = wide(seats=8)
    assert admission.arrive(head) == []
    dispatched: list[Job] = []
    for job in inside:
        assert dispatched == []
        assert admission.arrive(flooding()) == []
        dispatched = admission.finish(job, 1.0)
    assert dispatched == [head]


# Other limits.


def test_lowered_limits_dispatch_nothing_until_there_is_room(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=3))
    running = [short(), short(), short()]
    for job in running:
        admission.arrive(job)
    assert admission.set_limits(Limits(max_num_seqs=1)) == []
    waiting = short()
    assert admission.arrive(waiting) == []
    assert [admission.finish(job, 1.0) for job in running] == [[], [], [waiting]]


def test_raised_limits_dispatch_at_once(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy(), Limits(max_num_seqs=1))
    jobs = [short() for _ in range(4)]
    for job in jobs:
        admission.arrive(job)
    assert admission.set_limits(Limits(max_num_seqs=3)) == jobs[1:3]
    assert admission.limits == Limits(max_num_seqs=3)


@pytest.mark.parametrize(
    ("tight", "wide"),
    [
        (Limits(short_lane_tokens=10), Limits(short_lane_tokens=20)),
        (Limits(max_num_seqs=1), Limits(max_num_seqs=2)),
        (Limits(kv_tokens=1), Limits(kv_tokens=None)),
        (Limits(flow_in_flight=1), Limits(flow_in_flight=2)),
    ],
)
def test_each_limit_can_be_lowered_and_raised(new_policy: NewPolicy, tight: Limits, wide: Limits) -> None:
    admission = Admission(new_policy(), wide)
    first, second, third = (Job("a", "short", 10, 1.0, next(arrivals), kv_tokens=1) for _ in range(3))
    assert admission.arrive(first) == [first]
    assert admission.set_limits(tight) == []
    assert admission.arrive(second) == []
    assert admission.set_limits(wide) == [second]
    assert admission.set_limits(tight) == []
    admission.arrive(third)
    assert admission.finish(first, 1.0) == []
    assert admission.finish(second, 1.0) == [third]


def test_a_limit_change_keeps_the_lanes_of_existing_jobs(new_policy: NewPolicy) -> None:
    admission, waiting = Admission(new_policy(), Limits(long_prompt_tokens=100)), long(150)
    running = long(150)
    admission.arrive(running)
    admission.arrive(waiting)
    assert admission.set_limits(Limits(long_prompt_tokens=1000)) == []
    assert admission.waiting("long") == 1
    assert admission.first_token(running) == [waiting]


# Phases.


def test_a_repeated_first_token_changes_nothing(new_policy: NewPolicy) -> None:
    admission, job = Admission(new_policy()), short()
    admission.arrive(job)
    admission.first_token(job)
    assert admission.first_token(job) == []
    assert (admission.prefill_jobs("short"), admission.running) == (0, 1)


# What an unstreamed answer needs to know.


def test_the_predicted_prefill_includes_the_work_ahead(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy())
    first, second, third = short(cost=2.0), long(cost=3.0), short(cost=0.5)
    for job in (first, second):
        admission.arrive(job)
    assert (admission.ticket(first).predicted_prefill_s, admission.ticket(second).predicted_prefill_s) == (2.0, 5.0)
    admission.first_token(first)
    admission.arrive(third)
    assert admission.ticket(third).predicted_prefill_s == 3.5
    assert admission.ticket(second).predicted_prefill_s == 5.0  # said once, at its dispatch


def test_an_empty_engine_has_exactly_zero_work_ahead(new_policy: NewPolicy) -> None:
    admission = Admission(new_policy())
    for _ in range(3):
        jobs = [short(cost=0.1), short(cost=0.2), short(cost=0.3)]
        for job in jobs:
            admission.arrive(job)
        for job in jobs:
            admission.first_token(job)
    assert admission.ledger.prefill_s == 0.0

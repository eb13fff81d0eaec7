"""Does it fit: each rule of `gateway.admission` in a small scene, then all of them in any history, for every policy.

In the scenes all jobs are of one flow and come one after the other, so every policy takes them in that order.
"""

from collections.abc import Callable
from itertools import count
from random import Random
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway.admission import Admission
from gateway.limits import Limits
from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy

NewPolicy = Callable[[], Policy]
every_policy = pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)

arrivals = count()


def short(tokens: int = 10, seats: int = 1, cost: float = 1.0) -> Job:
    return Job("a", "short", tokens, cost, next(arrivals), seats)


def long(tokens: int = 5000, seats: int = 1, cost: float = 1.0) -> Job:
    return Job("a", "long", tokens, cost, next(arrivals), seats)


@every_policy
class TestScenes:
    def test_what_fits_goes_at_once(self, new_policy: NewPolicy) -> None:
        admission, job = Admission(new_policy()), short()
        assert admission.arrive(job) == [job]
        assert (admission.seats, admission.running, admission.waiting("short")) == (1, 1, 0)
        assert (admission.prefill_jobs("short"), admission.prefill_tokens("short")) == (1, 10)

    def test_each_budget_comes_back_at_its_time(self, new_policy: NewPolicy) -> None:
        admission, job = Admission(new_policy()), short(seats=3)
        admission.arrive(job)
        admission.first_token(job)
        assert (admission.prefill_jobs("short"), admission.prefill_tokens("short")) == (0, 0)
        assert admission.seats == 3
        admission.finish(job, 1.0)
        assert (admission.seats, admission.running) == (0, 0)

    def test_one_that_ends_before_its_first_token_gives_all_back_at_once(self, new_policy: NewPolicy) -> None:
        admission, job = Admission(new_policy()), long()
        admission.arrive(job)
        admission.finish(job, 0.0)
        assert (admission.prefill_jobs("long"), admission.prefill_tokens("long"), admission.seats) == (0, 0, 0)

    def test_short_jobs_prefill_together_up_to_their_tokens(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(short_lane_tokens=100))
        first, second, third = short(60), short(40), short(1)
        assert admission.arrive(first) == [first]
        assert admission.arrive(second) == [second]
        assert admission.arrive(third) == []
        assert admission.first_token(second) == [third]

    def test_nobody_passes_the_head_of_their_lane(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(short_lane_tokens=100))
        first, head, small = short(60), short(50), short(10)
        admission.arrive(first)
        assert admission.arrive(head) == []
        assert admission.arrive(small) == []  # it would fit
        assert admission.first_token(first) == [head, small]

    def test_a_job_larger_than_the_short_lane_goes_alone(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(short_lane_tokens=100))
        before, large, after = short(1), short(150), short(1)
        admission.arrive(before)
        assert admission.arrive(large) == []
        assert admission.arrive(after) == []
        assert admission.first_token(before) == [large]
        assert admission.first_token(large) == [after]

    def test_a_job_larger_than_all_seats_goes_alone(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(max_num_seqs=2))
        before, large, after = short(), short(seats=3), short()
        admission.arrive(before)
        admission.first_token(before)
        assert admission.arrive(large) == []
        assert admission.arrive(after) == []
        assert admission.finish(before, 1.0) == [large]
        assert admission.first_token(large) == []
        assert admission.finish(large, 1.0) == [after]

    @pytest.mark.parametrize("jobs", [1, 2, 3])
    def test_so_many_long_jobs_prefill_at_once(self, new_policy: NewPolicy, jobs: int) -> None:
        admission = Admission(new_policy(), Limits(long_lane_jobs=jobs))
        running = [long() for _ in range(jobs)]
        assert [admission.arrive(job) for job in running] == [[job] for job in running]
        waiting = long()
        assert admission.arrive(waiting) == []
        assert admission.first_token(running[0]) == [waiting]

    def test_a_full_lane_does_not_hold_the_other(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(short_lane_tokens=100))
        admission.arrive(long())
        admission.arrive(long())
        beside = short(100)
        assert admission.arrive(beside) == [beside]
        assert admission.arrive(short(1)) == []
        assert (admission.waiting("long"), admission.waiting("short")) == (1, 1)

    def test_seats_are_held_to_the_end(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(max_num_seqs=2))
        first, second, third = short(), long(), short()
        admission.arrive(first)
        admission.arrive(second)
        assert admission.arrive(third) == []
        assert admission.first_token(first) == []
        assert admission.finish(second, 1.0) == [third]

    def test_a_head_that_lacks_seats_alone_reserves_those_that_are_free(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(max_num_seqs=4))
        one, two, head, small = short(), short(seats=2), long(seats=2), short()
        admission.arrive(one)
        admission.arrive(two)
        assert admission.arrive(head) == []
        assert admission.arrive(small) == []  # a seat is free, and it is the head's
        assert admission.finish(one, 1.0) == [head]
        assert admission.finish(two, 1.0) == [small]

    def test_what_was_reserved_is_free_when_the_head_leaves(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(max_num_seqs=4))
        head, small = long(seats=2), short()
        admission.arrive(short(seats=3))
        admission.arrive(head)
        admission.arrive(small)
        assert admission.leave(head) == [small]

    def test_a_head_whose_lane_is_full_reserves_none_but_has_the_first_claim_after(self, new_policy: NewPolicy) -> None:
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
    def test_where_seats_are_scarce_the_lanes_take_turns(self, new_policy: NewPolicy, flood: Lane) -> None:
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

    def test_lowered_limits_let_nothing_go_until_there_is_room(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(max_num_seqs=3))
        running = [short(), short(), short()]
        for job in running:
            admission.arrive(job)
        admission.limits = Limits(max_num_seqs=1)
        waiting = short()
        assert admission.arrive(waiting) == []
        assert [admission.finish(job, 1.0) for job in running] == [[], [], [waiting]]

    def test_a_first_token_told_again_changes_nothing(self, new_policy: NewPolicy) -> None:
        admission, job = Admission(new_policy()), short()
        admission.arrive(job)
        admission.first_token(job)
        assert admission.first_token(job) == []
        assert (admission.prefill_jobs("short"), admission.running) == (0, 1)

    def test_what_cannot_happen_to_a_job_is_refused_and_changes_nothing(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy(), Limits(long_lane_jobs=1))
        running, waiting, stranger = long(), long(), long()
        admission.arrive(running)
        admission.arrive(waiting)
        events: list[Callable[[], list[Job]]] = [
            lambda: admission.first_token(waiting),
            lambda: admission.finish(waiting, 1.0),
            lambda: admission.leave(running),
            lambda: admission.first_token(stranger),
            lambda: admission.finish(stranger, 1.0),
            lambda: admission.leave(stranger),
        ]
        for event in events:
            with pytest.raises(KeyError):
                event()
        assert (admission.running, admission.seats, admission.waiting("long")) == (1, 1, 1)
        assert admission.finish(running, 1.0) == [waiting]

    def test_predicted_prefill_counts_the_work_ahead(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy())
        first, second, third = short(cost=2.0), long(cost=3.0), short(cost=0.5)
        for job in (first, second):
            admission.arrive(job)
        assert (admission.predicted_prefill(first), admission.predicted_prefill(second)) == (2.0, 5.0)
        admission.first_token(first)
        admission.arrive(third)
        assert admission.predicted_prefill(third) == 3.5
        assert admission.predicted_prefill(second) == 5.0  # said once, at its dispatch

    def test_an_empty_engine_has_no_work_ahead_to_the_last_bit(self, new_policy: NewPolicy) -> None:
        admission = Admission(new_policy())
        for _ in range(3):
            jobs = [short(cost=0.1), short(cost=0.2), short(cost=0.3)]
            for job in jobs:
                admission.arrive(job)
            for job in jobs:
                admission.first_token(job)
        assert admission.prefill_cost == 0.0


def test_a_prompt_of_exactly_the_limit_is_short() -> None:
    limits = Limits(long_prompt_tokens=100)
    assert (limits.lane(100), limits.lane(101)) == ("short", "long")


class Referee:
    """A policy that is another one, and judges every dispatch as it happens, from nothing but the sets of jobs."""

    def __init__(self, policy: Policy, limits: Limits) -> None:
        self.policy = policy
        self.limits = limits
        self.waiting_jobs: list[Job] = []
        self.prefill: list[Job] = []
        self.decode: list[Job] = []
        self.served: dict[Lane, int] = {lane: place - len(LANES) for place, lane in enumerate(LANES)}
        self.dispatches = 0

    @property
    def running(self) -> list[Job]:
        return self.prefill + self.decode

    @property
    def seats(self) -> int:
        return sum(job.seats for job in self.running)

    def lane_fits(self, job: Job) -> bool:
        beside = [other for other in self.prefill if other.lane == job.lane]
        if job.lane == "long":
            return not beside or len(beside) + 1 <= self.limits.long_lane_jobs
        return not beside or sum(other.tokens for other in beside) + job.tokens <= self.limits.short_lane_tokens

    def seats_fit(self, job: Job) -> bool:
        return not self.running or self.seats + job.seats <= self.limits.max_num_seqs

    def waits_for_seats_alone(self, lane: Lane) -> bool:
        head = self.policy.peek(lane)
        return head is not None and self.lane_fits(head) and not self.seats_fit(head)

    def push(self, job: Job) -> None:
        self.waiting_jobs.append(job)
        self.policy.push(job)

    def peek(self, lane: Lane) -> Job | None:
        return self.policy.peek(lane)

    def pop(self, lane: Lane) -> Job:
        """A dispatch. What had the first claim, and could have used a seat now or later, was not passed over."""
        other = other_lane(lane)
        if self.served[other] < self.served[lane]:
            head = self.policy.peek(other)
            assert head is None or not self.lane_fits(head)
        job = self.policy.pop(lane)
        assert self.lane_fits(job)
        assert self.seats_fit(job)
        self.served[lane] = self.dispatches
        self.dispatches += 1
        self.waiting_jobs.remove(job)
        self.prefill.append(job)
        return job

    def remove(self, job: Job) -> None:
        self.waiting_jobs.remove(job)
        self.policy.remove(job)

    def settle(self, job: Job, cost: float) -> None:
        self.policy.settle(job, cost)

    def waiting(self, lane: Lane) -> int:
        return self.policy.waiting(lane)

    def assert_nothing_idles(self) -> None:
        """Whoever heads a lane lacks room, or the other lane, served longer ago, waits for the seats."""
        for lane in LANES:
            head, other = self.policy.peek(lane), other_lane(lane)
            if head and self.lane_fits(head) and self.seats_fit(head):
                assert self.served[other] < self.served[lane]
                assert self.waits_for_seats_alone(other)


def other_lane(lane: Lane) -> Lane:
    return "long" if lane == "short" else "short"


def limits() -> st.SearchStrategy[Limits]:
    return st.builds(
        Limits,
        short_lane_tokens=st.integers(1, 200),
        long_lane_jobs=st.integers(1, 3),
        max_num_seqs=st.integers(1, 6),
    )


class Histories(RuleBasedStateMachine):
    """Anything that can happen, in any order; the referee looks on."""

    start: ClassVar[NewPolicy]

    def __init__(self) -> None:
        super().__init__()
        self.referee = Referee(type(self).start(), Limits())
        self.admission = Admission(self.referee)
        self.arrived = 0
        self.ended: list[Job] = []

    @rule(new=limits())
    def limit(self, new: Limits) -> None:
        self.admission.limits = self.referee.limits = new

    @rule(
        flow=st.sampled_from("abc"),
        lane=st.sampled_from(LANES),
        tokens=st.integers(1, 300),
        cost=st.floats(0, 10),
        seats=st.integers(1, 8),
    )
    def arrive(self, flow: str, lane: Lane, tokens: int, cost: float, seats: int) -> None:
        job = Job(flow, lane, tokens, cost, self.arrived, seats)
        self.arrived += 1
        self.told(lambda: self.admission.arrive(job))

    @precondition(lambda self: self.referee.running)
    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        self.begin(data.draw(st.sampled_from(self.referee.running)))

    @precondition(lambda self: self.referee.running)
    @rule(data=st.data(), cost=st.floats(0, 10))
    def finish(self, data: st.DataObject, cost: float) -> None:
        self.end(data.draw(st.sampled_from(self.referee.running)), cost)

    @precondition(lambda self: self.referee.waiting_jobs)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.referee.waiting_jobs))
        self.ended.append(job)
        self.told(lambda: self.admission.leave(job))

    def begin(self, job: Job) -> None:
        if job in self.referee.decode:
            assert self.admission.first_token(job) == []
            return
        self.referee.prefill.remove(job)
        self.referee.decode.append(job)
        self.told(lambda: self.admission.first_token(job))

    def end(self, job: Job, cost: float) -> None:
        phase = self.referee.prefill if job in self.referee.prefill else self.referee.decode
        phase.remove(job)
        self.ended.append(job)
        self.told(lambda: self.admission.finish(job, cost))

    def told(self, event: Callable[[], list[Job]]) -> None:
        before = self.referee.dispatches
        dispatched = event()
        assert dispatched == self.referee.prefill[len(self.referee.prefill) - len(dispatched) :]
        assert self.referee.dispatches - before == len(dispatched)
        self.referee.assert_nothing_idles()

    @invariant()
    def counters_are_the_sums_they_stand_for(self) -> None:
        admission, referee = self.admission, self.referee
        assert admission.seats == referee.seats
        assert admission.running == len(referee.running)
        assert admission.prefill_cost == pytest.approx(sum(job.cost for job in referee.prefill))
        for lane in LANES:
            beside = [job for job in referee.prefill if job.lane == lane]
            assert admission.prefill_jobs(lane) == len(beside)
            assert admission.prefill_tokens(lane) == sum(job.tokens for job in beside)
            assert admission.waiting(lane) == sum(job.lane == lane for job in referee.waiting_jobs)

    def teardown(self) -> None:
        """Let everything come to its end: each job has exactly one, and nothing is left."""
        while self.referee.running:
            self.end(self.referee.running[0], 1.0)
        assert not self.referee.waiting_jobs
        assert len(self.ended) == len(set(self.ended)) == self.arrived
        assert self.admission.seats == self.admission.running == self.admission.prefill_cost == 0
        for lane in LANES:
            assert self.admission.prefill_jobs(lane) == self.admission.prefill_tokens(lane) == 0
            assert self.admission.waiting(lane) == 0


@every_policy
def test_any_history(new_policy: NewPolicy) -> None:
    class TheirHistories(Histories):
        start = new_policy

    run_state_machine_as_test(
        TheirHistories, settings=settings(max_examples=120, stateful_step_count=40, deadline=None)
    )


@every_policy
@given(limits=limits(), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_no_head_waits_for_ever_while_both_lanes_are_flooded(new_policy: NewPolicy, limits: Limits, seed: int) -> None:
    """At every step the oldest job in the engine ends and whatever was served is replaced.

    A head waits for its lane to have room, perhaps for the other lane's turn, and for its seats; what is in the
    engine at each of these is gone after `max_num_seqs` ends.
    """
    random, now = Random(seed), count()
    referee = Referee(new_policy(), limits)
    admission = Admission(referee, limits)
    heads: dict[Lane, tuple[Job | None, int, int]] = dict.fromkeys(LANES, (None, 0, 0))
    served = dict.fromkeys(LANES, 0)
    running: list[Job] = []
    for step in range(150):
        for lane in LANES:
            while admission.waiting(lane) < 3:
                tokens, seats = random.randint(1, 300), random.randint(1, limits.max_num_seqs + 1)
                job = Job(random.choice("abc"), lane, tokens, random.random(), next(now), seats)
                running += admission.arrive(job)
        ended = running.pop(0)
        if random.random() < 0.7:
            referee.prefill.remove(ended)
            referee.decode.append(ended)
            running += admission.first_token(ended)
        (referee.prefill if ended in referee.prefill else referee.decode).remove(ended)
        served[ended.lane] += 1
        running += admission.finish(ended, random.random())
        for lane in LANES:
            head, turn, since = heads[lane]
            if referee.peek(lane) is not head or referee.served[lane] != turn:  # another was, for the while
                heads[lane] = (referee.peek(lane), referee.served[lane], step)
            else:
                assert step - since <= 3 * limits.max_num_seqs + 1
    assert min(served.values()) > 0

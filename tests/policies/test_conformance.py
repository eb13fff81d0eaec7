"""What every policy promises, whatever order it keeps: the laws of `policies.base`, over random histories.

A policy added to `POLICIES` is held to them without a line being written here.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from policies import POLICIES
from policies.base import LANES, Job, Lane, Policy

every_policy = pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES)
NewPolicy = Callable[[], Policy]

lanes = st.sampled_from(LANES)
seconds = st.floats(0, 60, allow_nan=False)
jobs = st.builds(
    Job,
    flow=st.sampled_from("abc"),
    lane=lanes,
    tokens=st.integers(1, 30_000),
    cost=seconds,
    arrival=seconds,
    seats=st.integers(1, 3),
)


class Laws(RuleBasedStateMachine):
    """Any history of pushes, pops, removals and settlements, beside a set of the jobs that should be waiting."""

    start: ClassVar[NewPolicy]

    def __init__(self) -> None:
        super().__init__()
        self.policy = type(self).start()
        self.waiting: list[Job] = []
        self.popped: list[Job] = []

    @rule(job=jobs)
    def push(self, job: Job) -> None:
        self.policy.push(job)
        self.waiting.append(job)

    @rule(lane=lanes)
    def pop(self, lane: Lane) -> None:
        named = self.policy.peek(lane)
        if named is None:
            return
        assert self.policy.pop(lane) is named
        self.waiting.remove(named)  # it was there, and no longer is
        self.popped.append(named)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        job = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.policy.remove(job)

    @precondition(lambda self: self.popped)
    @rule(data=st.data(), cost=seconds)
    def settle(self, data: st.DataObject, cost: float) -> None:
        job = self.popped.pop(data.draw(st.integers(0, len(self.popped) - 1)))
        self.policy.settle(job, cost)

    @invariant()
    def lanes_are_counted_and_never_mix(self) -> None:
        for lane in LANES:
            assert self.policy.waiting(lane) == sum(job.lane == lane for job in self.waiting)
            named = self.policy.peek(lane)
            assert self.policy.peek(lane) is named
            assert (named is None) == (self.policy.waiting(lane) == 0)
            assert named is None or (named in self.waiting and named.lane == lane)

    def teardown(self) -> None:
        for lane in LANES:
            for _ in range(self.policy.waiting(lane)):
                self.pop(lane)
        assert not self.waiting
        for job in reversed(self.popped):
            self.policy.settle(job, job.cost)


@every_policy
def test_each_job_is_popped_or_removed_exactly_once(new_policy: NewPolicy) -> None:
    class TheirLaws(Laws):
        start = new_policy

    run_state_machine_as_test(TheirLaws, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


# A history as data: jobs to push, a lane to pop, how far back to remove or to settle.
steps: st.SearchStrategy[list[tuple[str, Any]]] = st.lists(
    st.one_of(
        st.tuples(st.just("push"), jobs),
        st.tuples(st.just("pop"), lanes),
        st.tuples(st.just("remove"), st.integers(0, 9)),
        st.tuples(st.just("settle"), st.tuples(st.integers(0, 9), seconds)),
    ),
    max_size=60,
)


def order(policy: Policy, history: list[tuple[str, Any]], peeks: int) -> list[Job]:
    """Who was popped, in order, when each step of the history is followed by so many peeks."""
    waiting: list[Job] = []
    running: list[Job] = []
    order: list[Job] = []
    for step, what in history:
        if step == "push":
            policy.push(what)
            waiting.append(what)
        elif step == "pop" and policy.waiting(what):
            order.append(policy.pop(what))
            waiting.remove(order[-1])
            running.append(order[-1])
        elif step == "remove" and what < len(waiting):
            policy.remove(waiting.pop(what))
        elif step == "settle" and what[0] < len(running):
            policy.settle(running.pop(what[0]), what[1])
        for _ in range(peeks):
            for lane in LANES:
                policy.peek(lane)
    return order


@every_policy
@given(history=steps)
def test_the_same_history_gives_the_same_order_however_often_it_is_peeked(
    new_policy: NewPolicy, history: list[tuple[str, Any]]
) -> None:
    assert order(new_policy(), history, peeks=0) == order(new_policy(), history, peeks=2)


@every_policy
@pytest.mark.parametrize("lane", LANES)
def test_there_is_nothing_to_pop_from_an_empty_lane(new_policy: NewPolicy, lane: Lane) -> None:
    with pytest.raises(IndexError):
        new_policy().pop(lane)


@every_policy
def test_a_job_is_itself_and_no_other_of_the_same_content(new_policy: NewPolicy) -> None:
    policy = new_policy()
    one, other = (Job("a", "short", 10, 1.0, 0.0) for _ in range(2))
    policy.push(one)
    policy.push(other)
    policy.remove(one)
    assert policy.pop("short") is other


@every_policy
@given(random=st.randoms(use_true_random=False), victim_cost=st.integers(1, 4), behind=st.integers(0, 8))
@settings(max_examples=30)
def test_a_waiting_job_is_popped_after_boundedly_many_of_its_lane(
    new_policy: NewPolicy, random: Any, victim_cost: int, behind: int
) -> None:
    """Four flows, every job between 1 and 4 s, each pop followed by a new arrival while the clock goes on.

    The bound is loose and computed from these alone: aging lets at most 16 jobs that came later pass inside the
    victim's flow, and until those and the `behind` are through, each other flow gets as much work and a job more.
    """
    policy, now = new_policy(), 0.0

    def arrive(flow: str, cost: int) -> Job:
        job = Job(flow, "long", 1000 * cost, cost, now)
        policy.push(job)
        return job

    for _ in range(behind):
        arrive(random.choice("abcv"), random.randint(1, 4))
    victim = arrive("v", victim_cost)
    ahead_in_flow = (behind + 16 + 1) * 4
    bound = (behind + 16) + 3 * (ahead_in_flow + 4)
    for _ in range(bound + 1):
        arrive(random.choice("abcv"), random.randint(1, 4))
        job = policy.pop("long")
        if job is victim:
            return
        policy.settle(job, random.randint(1, 4))
        now += job.cost
    pytest.fail(f"still waiting after {bound} pops")
